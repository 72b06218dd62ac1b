// The head dimensions that attention has kernels for. A new one is a number in this list.
#pragma once

#define FDPP_FOR_EACH_HEAD_DIM(use, ...)                                                                     \
  use(64, __VA_ARGS__) use(80, __VA_ARGS__) use(96, __VA_ARGS__) use(128, __VA_ARGS__) use(192, __VA_ARGS__) \
      use(256, __VA_ARGS__)

// Runs the statement with `D` as the head dimension.
#define FDPP_WITH_HEAD_DIM(head_dim, ...) \
  switch (head_dim) { FDPP_FOR_EACH_HEAD_DIM(FDPP_HEAD_DIM_CASE, __VA_ARGS__) }
#define FDPP_HEAD_DIM_CASE(dim, ...) \
  case dim: {                        \
    constexpr int D = dim;           \
    __VA_ARGS__;                     \
    break;                           \
  }

namespace fdpp {

#define FDPP_HEAD_DIM_ENTRY(dim, ...) dim,
constexpr int kHeadDims[] = {FDPP_FOR_EACH_HEAD_DIM(FDPP_HEAD_DIM_ENTRY)};
#undef FDPP_HEAD_DIM_ENTRY

}  // namespace fdpp
