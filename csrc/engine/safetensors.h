#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "engine/mapped_file.h"
#include "recengine/tensor.h"

namespace recengine {

enum class DType : uint8_t { kFloat32, kFloat16, kUint8, kUint16, kInt8, kInt32, kInt64, kOther };

template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return DType::kFloat32;
  if constexpr (std::is_same_v<T, int8_t>) return DType::kInt8;
  if constexpr (std::is_same_v<T, uint8_t>) return DType::kUint8;
  if constexpr (std::is_same_v<T, int32_t>) return DType::kInt32;
  if constexpr (std::is_same_v<T, int64_t>) return DType::kInt64;
}

// The tensors of one safetensors file. Data stays in the mapping, except a tensor that is not
// aligned for its type: that one is copied.
class Safetensors {
 public:
  // Checks the whole header: tensors tile the data section without gap or overlap, and each byte
  // range is what dtype and shape say. Throws BundleError naming the file and the tensor. Borrows
  // `file`.
  explicit Safetensors(const MappedFile& file);

  DType dtype(const std::string& name) const;

  // The data of a tensor, which must have this dtype and shape.
  const void* data(const std::string& name, DType dtype, const std::vector<int64_t>& shape) const;

  template <typename T>
  Span<const T> vector(const std::string& name, int64_t size) const {
    return {static_cast<const T*>(data(name, dtype_of<T>(), {size})), size};
  }

  // A vector of whatever size it has.
  template <typename T>
  Span<const T> vector(const std::string& name) const {
    return vector<T>(name, leading_size(name));
  }

  template <typename T>
  Matrix<const T> matrix(const std::string& name, int64_t rows, int64_t cols) const {
    return {static_cast<const T*>(data(name, dtype_of<T>(), {rows, cols})), rows, cols};
  }

 private:
  struct Entry {
    std::string dtype;
    std::vector<int64_t> shape;
    const uint8_t* data = nullptr;
    std::shared_ptr<const uint8_t> copy;  // set when the data was not aligned
  };

  const Entry& entry(const std::string& name) const;
  int64_t leading_size(const std::string& name) const;

  std::string path_;
  std::map<std::string, Entry> entries_;
};

}  // namespace recengine
