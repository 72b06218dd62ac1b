// Compiles the code between FDPP_TARGET_BEGIN("feature,...") and FDPP_TARGET_END for an instruction set, in a file that
// is otherwise compiled for the baseline. Standard headers come before BEGIN: their inline functions stay baseline. No
// lambda stands between the two (GCC compiles lambdas for the baseline).
#pragma once

#define FDPP_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define FDPP_TARGET_BEGIN(features) \
  FDPP_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FDPP_TARGET_END FDPP_PRAGMA(clang attribute pop)
#else
// GCC 12 takes the deliberately undefined operands of its own AVX-512 headers for uninitialised variables (bug 105593).
#define FDPP_TARGET_BEGIN(features)                     \
  FDPP_PRAGMA(GCC diagnostic ignored "-Wuninitialized") \
  FDPP_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") FDPP_PRAGMA(GCC target(features))
#define FDPP_TARGET_END  // to the end of the file: templates are instantiated there
#endif
