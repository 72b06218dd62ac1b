// What every operator checks of its tensors, with messages that name the tensor, what was expected and what came.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "common/memory_overlap.h"
#include "common/params.h"

namespace fdpp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalString = std::optional<std::string>;

constexpr int64_t kAnySize = -1;

// A tensor that an operator writes. Each of its elements must have memory of its own.
struct Written {
  Written(const char* op, const char* name, const Tensor& tensor);

  const char* name;
  MemoryLayout layout;
};

// One tensor argument of one operator.
class Argument {
 public:
  // It is a tensor, and its storage holds its elements (a storage can be resized after its tensors were made).
  Argument(const char* op, const char* name, const Tensor& tensor);

  // float32, bfloat16 or float16.
  DType floating() const;
  const Argument& dtype(ScalarType expected) const;
  const Argument& same_dtype_as(const Argument& other) const;
  const Argument& same_device_as(const Argument& other) const;
  // `dims` names the dimensions for the message, as in "[B, Sq, Hq, D]".
  const Argument& shape(const char* dims, std::initializer_list<int64_t> expected) const;
  const Argument& last_dim_contiguous() const;
  const Argument& contiguous() const;
  // Its data and every row of the last dimension begin at a multiple of 16 bytes, for loads of that size.
  const Argument& aligned() const;
  // For what is used while others are written: an alias would change before it is used, or after it was checked.
  const Argument& apart_from(std::span<const Written> others) const;
  // Tells autograd that the operator is about to write the tensor, which has been checked.
  void mark_written() const;

  [[noreturn]] void fail(const std::string& expected) const;

 private:
  const char* op_;
  const char* name_;
  const Tensor& tensor_;
};

// As torch calls it: "float32".
const char* type_name(ScalarType type);

// "float32 [2, 3] with strides [3, 1] on cpu"
std::string describe(const Tensor& tensor);

[[noreturn]] void fail(const char* op, const std::string& message);

// Sizes are limited so that products of a few of them fit 64 bits.
int checked_int(const char* op, const char* name, int64_t value);

Tensor empty_like_device(const Tensor& like, std::initializer_list<int64_t> sizes);
Tensor empty_floats(const Tensor& like, int64_t count);    // float32 and int32 scratch on the device of `like`
Tensor empty_with_last(const Tensor& like, int64_t last);  // sizes of `like`, another last one; contiguous

// Rows of a tensor whose last dimension is contiguous: row i begins at (i / inner) * outer_stride + (i % inner) *
// inner_stride. Holds the tensor, or its contiguous copy when its outer strides are not of that form.
struct Rows {
  Tensor tensor;
  int64_t count, inner, outer_stride, inner_stride;
};

Rows rows_of(const Tensor& tensor);

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<void, Free>;

// Uninitialised memory aligned to 64 bytes; throws when there is none.
Scratch scratch(const char* op, int64_t bytes);

}  // namespace fdpp
