#include "torch/arguments/checks.h"

#include <array>
#include <limits>
#include <stdexcept>

namespace fdpp {

namespace {

std::string join(torch::headeronly::IntHeaderOnlyArrayRef values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + "]";
}

bool is_meta(const Tensor& tensor) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
  return device_type == aoti_torch_device_type_meta();
}

std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  if (is_meta(tensor)) return "meta";
  return "another device";
}

bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// Elements from the first to the last of a tensor that has any.
int64_t span(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
  return last + 1;
}

Tensor empty_of(const Tensor& like, int32_t dtype, const int64_t* sizes, int64_t dims) {
  int64_t strides[16];
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

}  // namespace

const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(type);
  }
}

std::string describe(const Tensor& tensor) {
  return std::string(type_name(tensor.scalar_type())) + " " + join(tensor.sizes()) + " with strides " +
         join(tensor.strides()) + " on " + device_of(tensor);
}

void fail(const char* op, const std::string& message) {
  throw std::runtime_error(std::string("fdpp::") + op + ": " + message);
}

void Argument::fail(const std::string& expected) const {
  fdpp::fail(op_, std::string(name_) + " must " + expected + "; got " + describe(tensor_));
}

Argument::Argument(const char* op, const char* name, const Tensor& tensor) : op_(op), name_(name), tensor_(tensor) {
  if (!tensor.defined()) fdpp::fail(op, std::string(name) + " must be a tensor; got None");
  if (tensor.numel() == 0) return;
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  const int64_t needed = (tensor.storage_offset() + span(tensor)) * static_cast<int64_t>(tensor.element_size());
  if (bytes < needed) {
    fail("have a storage of at least " + std::to_string(needed) + " bytes, not " + std::to_string(bytes) +
         " (was it resized?)");
  }
}

DType Argument::floating() const {
  switch (tensor_.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: fail("be float32, bfloat16 or float16");
  }
}

const Argument& Argument::dtype(ScalarType expected) const {
  if (tensor_.scalar_type() != expected) fail(std::string("be ") + type_name(expected));
  return *this;
}

const Argument& Argument::same_dtype_as(const Argument& other) const {
  if (tensor_.scalar_type() != other.tensor_.scalar_type()) {
    fail(std::string("have the dtype of ") + other.name_ + ", " + type_name(other.tensor_.scalar_type()));
  }
  return *this;
}

const Argument& Argument::same_device_as(const Argument& other) const {
  if (!same_device(tensor_, other.tensor_)) {
    fail(std::string("be on the device of ") + other.name_ + ", " + device_of(other.tensor_));
  }
  return *this;
}

const Argument& Argument::shape(const char* dims, std::initializer_list<int64_t> expected) const {
  const auto sizes = tensor_.sizes();
  bool matches = sizes.size() == expected.size();
  std::string wanted;
  size_t i = 0;
  for (const int64_t size : expected) {
    wanted += (i == 0 ? "" : ", ") + (size == kAnySize ? std::string("*") : std::to_string(size));
    matches = matches && (size == kAnySize || size == sizes[i]);
    ++i;
  }
  if (!matches) fail(std::string("have shape ") + dims + " = [" + wanted + "]");
  return *this;
}

const Argument& Argument::last_dim_contiguous() const {
  const int64_t dims = tensor_.dim();
  if (dims == 0) fail("have at least one dimension");
  if (tensor_.stride(dims - 1) != 1 && tensor_.size(dims - 1) > 1) fail("be contiguous in its last dimension");
  return *this;
}

const Argument& Argument::aligned() const {
  constexpr int64_t kBytes = 16;
  if (reinterpret_cast<uintptr_t>(tensor_.data_ptr()) % kBytes != 0) fail("begin at a multiple of 16 bytes");
  const int64_t bytes = static_cast<int64_t>(tensor_.element_size());
  for (int64_t d = 0; d + 1 < tensor_.dim(); ++d) {
    if (tensor_.size(d) > 1 && tensor_.stride(d) * bytes % kBytes != 0) {
      fail("have outer strides that are multiples of " + std::to_string(kBytes / bytes) +
           " elements (16 bytes); stride(" + std::to_string(d) + ") is " + std::to_string(tensor_.stride(d)));
    }
  }
  return *this;
}

const Argument& Argument::contiguous() const {
  if (!tensor_.is_contiguous()) fail("be contiguous");
  return *this;
}

static MemoryLayout layout_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const auto element_bytes = static_cast<int64_t>(tensor.element_size());
  const auto dims = static_cast<int64_t>(sizes.size());
  return memory_layout(tensor.data_ptr(), element_bytes, sizes.data(), strides.data(), dims);
}

Written::Written(const char* op, const char* name, const Tensor& tensor) : name(name), layout(layout_of(tensor)) {
  if (!overlaps_itself(layout)) return;
  Argument(op, name, tensor).fail("have memory of its own for each element, as it is written");
}

const Argument& Argument::apart_from(std::span<const Written> others) const {
  const MemoryLayout layout = layout_of(tensor_);
  for (const Written& other : others) {
    if (!share_memory(layout, other.layout)) continue;
    fail(std::string("share no memory with ") + other.name + ", which is written");
  }
  return *this;
}

void Argument::mark_written() const {
  // The stable ABI has no function for this. To swap a dimension with itself changes nothing but the version, and torch
  // refuses it for tensors that must not be written.
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(tensor_), from(int64_t{0}), from(int64_t{0})};
  if (torch_call_dispatcher("aten::transpose_", "", stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS) {
    fail("be writable in place: no leaf that requires a gradient, and no inference tensor outside of inference_mode()");
  }
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the reference that the call returned
}

int checked_int(const char* op, const char* name, int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max()) {
    fail(op, std::string(name) + " must be between 0 and 2^31 - 1; got " + std::to_string(value));
  }
  return static_cast<int>(value);
}

Tensor empty_like_device(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return empty_of(like, dtype_of(like), sizes.begin(), static_cast<int64_t>(sizes.size()));
}

Tensor empty_floats(const Tensor& like, int64_t count) { return empty_of(like, aoti_torch_dtype_float32(), &count, 1); }

Tensor empty_with_last(const Tensor& like, int64_t last) {
  const auto sizes = like.sizes();
  if (sizes.empty() || sizes.size() > 16)
    throw std::runtime_error("fdpp: tensors have 1 to 16 dimensions; got " + describe(like));
  int64_t changed[16];
  for (size_t d = 0; d < sizes.size(); ++d) changed[d] = sizes[d];
  changed[sizes.size() - 1] = last;
  return empty_of(like, dtype_of(like), changed, static_cast<int64_t>(sizes.size()));
}

Rows rows_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int outer_dims = static_cast<int>(sizes.size()) - 1;
  // Merge neighbouring dimensions that one stride walks through; at most two runs can be expressed.
  int64_t run_sizes[2] = {1, 1}, run_strides[2] = {0, 0};  // innermost first
  int runs = 0;
  int64_t count = 1;
  bool expressible = true;
  for (int d = outer_dims - 1; d >= 0; --d) {
    count *= sizes[d];
    if (sizes[d] == 1) continue;
    if (runs > 0 && strides[d] == run_sizes[runs - 1] * run_strides[runs - 1]) {
      run_sizes[runs - 1] *= sizes[d];
    } else if (runs < 2) {
      run_sizes[runs] = sizes[d];
      run_strides[runs] = strides[d];
      ++runs;
    } else {
      expressible = false;
    }
  }
  if (!expressible && count > 0) return rows_of(torch::stable::contiguous(tensor));
  return {tensor, count, run_sizes[0] > 0 ? run_sizes[0] : 1, run_strides[1], run_strides[0]};
}

Scratch scratch(const char* op, int64_t bytes) {
  const size_t rounded = (static_cast<size_t>(bytes) + 63) / 64 * 64 + 64;
  Scratch memory(std::aligned_alloc(64, rounded));
  if (memory == nullptr) fail(op, "out of memory: " + std::to_string(bytes) + " bytes of scratch");
  return memory;
}

}  // namespace fdpp
