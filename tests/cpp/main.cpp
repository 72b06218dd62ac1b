// Runs every test, or those whose names contain the argument. Built with AddressSanitizer and UBSan by `make sanitize`.
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  int run = 0;
  for (const fdpp::test::Test& test : fdpp::test::tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = fdpp::test::failures();
    test.run();
    ++run;
    std::printf("%-4s %s\n", fdpp::test::failures() == before ? "ok" : "FAIL", test.name);
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed checks\n", run, fdpp::test::failures());
  return fdpp::test::failures() == 0 && run > 0 ? 0 : 1;
}
