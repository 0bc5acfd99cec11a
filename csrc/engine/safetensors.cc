#include "engine/safetensors.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "engine/json.h"
#include "recengine/error.h"

namespace recengine {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // as in the reference implementation
constexpr size_t kAlignment = 64;

struct DTypeName {
  const char* name;
  int bits;
  DType dtype;
};

constexpr DTypeName kDTypes[] = {
    {"F32", 32, DType::kFloat32}, {"F16", 16, DType::kFloat16},  {"I8", 8, DType::kInt8},
    {"I32", 32, DType::kInt32},   {"I64", 64, DType::kInt64},    {"BOOL", 8, DType::kOther},
    {"U8", 8, DType::kUint8},     {"F8_E5M2", 8, DType::kOther}, {"F8_E4M3", 8, DType::kOther},
    {"I16", 16, DType::kOther},   {"U16", 16, DType::kUint16},   {"BF16", 16, DType::kOther},
    {"U32", 32, DType::kOther},   {"U64", 64, DType::kOther},    {"F64", 64, DType::kOther},
};

const DTypeName* find_dtype(const std::string& name) {
  for (const DTypeName& dtype : kDTypes) {
    if (name == dtype.name) return &dtype;
  }
  return nullptr;
}

std::string to_string(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t dim : shape) text += (text.empty() ? "" : ", ") + std::to_string(dim);
  return "[" + text + "]";
}

// A tensor as the header describes it; offsets count from the start of the data section.
struct Described {
  std::string name;
  const DTypeName* dtype = nullptr;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

Described describe(const std::string& name, const JsonValue& value) {
  value.require_only({"dtype", "shape", "data_offsets"});
  Described tensor;
  tensor.name = name;
  tensor.dtype = find_dtype(value.at("dtype").as_string());
  if (tensor.dtype == nullptr) value.at("dtype").fail("a dtype of the safetensors format");
  int64_t bytes = tensor.dtype->bits / 8;
  for (const JsonValue& dim : value.at("shape").elements()) {
    tensor.shape.push_back(dim.as_int(0));
    if (__builtin_mul_overflow(bytes, tensor.shape.back(), &bytes)) {
      value.at("shape").fail_plainly("the number of bytes overflows an int64");
    }
  }
  const std::vector<JsonValue> offsets = value.at("data_offsets").elements();
  if (offsets.size() != 2) value.at("data_offsets").fail_plainly("expected [begin, end]");
  tensor.begin = offsets[0].as_int(0);
  tensor.end = offsets[1].as_int(tensor.begin);
  if (tensor.end - tensor.begin != bytes) {
    value.at("data_offsets")
        .fail_plainly("expected " + std::to_string(bytes) + " bytes for shape " +
                      to_string(tensor.shape) + ", found " +
                      std::to_string(tensor.end - tensor.begin));
  }
  return tensor;
}

int64_t header_length(const MappedFile& file) {
  const Span<const uint8_t> bytes = file.bytes();
  if (bytes.size < kLengthBytes) {
    throw BundleError(file.path() + ": expected a safetensors header, found " +
                      std::to_string(bytes.size) + " bytes");
  }
  uint64_t length = 0;
  for (int i = 0; i < kLengthBytes; ++i) length |= uint64_t{bytes[i]} << (8 * i);
  const int64_t most = std::min(bytes.size - kLengthBytes, kMaxHeaderBytes);
  if (length > static_cast<uint64_t>(most)) {
    throw BundleError(file.path() + ": header length: expected at most " + std::to_string(most) +
                      ", found " + std::to_string(length));
  }
  return static_cast<int64_t>(length);
}

std::vector<Described> read_header(const MappedFile& file, int64_t length) {
  const Span<const uint8_t> text(file.bytes().data + kLengthBytes, length);
  const nlohmann::json document = parse_json(file.path(), text);
  std::vector<Described> tensors;
  for (const auto& [name, value] : JsonValue(document, file.path()).members()) {
    if (name != "__metadata__") tensors.push_back(describe(name, value));
  }
  std::sort(tensors.begin(), tensors.end(), [](const Described& a, const Described& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  return tensors;
}

// Each tensor begins where the one before it ends, and the last one ends with the file.
void require_tiling(const MappedFile& file, const std::vector<Described>& tensors,
                    int64_t data_bytes) {
  int64_t end = 0;
  for (const Described& tensor : tensors) {
    if (tensor.begin != end) {
      throw BundleError(file.path() + ": tensor " + tensor.name + ": expected data_offsets from " +
                        std::to_string(end) + ", found " + std::to_string(tensor.begin));
    }
    end = tensor.end;
  }
  if (end != data_bytes) {
    throw BundleError(file.path() + ": expected " + std::to_string(end) + " bytes of data, found " +
                      std::to_string(data_bytes));
  }
}

std::shared_ptr<const uint8_t> aligned_copy(const uint8_t* data, int64_t size) {
  auto* memory = static_cast<uint8_t*>(
      ::operator new(static_cast<size_t>(size), std::align_val_t(kAlignment)));
  std::memcpy(memory, data, static_cast<size_t>(size));
  return {memory, [](const uint8_t* p) {
            ::operator delete(const_cast<uint8_t*>(p), std::align_val_t(kAlignment));
          }};
}

}  // namespace

Safetensors::Safetensors(const MappedFile& file) : path_(file.path()) {
  const int64_t length = header_length(file);
  const std::vector<Described> tensors = read_header(file, length);
  const int64_t start = kLengthBytes + length;
  require_tiling(file, tensors, file.bytes().size - start);
  for (const Described& tensor : tensors) {
    Entry entry;
    entry.dtype = tensor.dtype->name;
    entry.shape = tensor.shape;
    entry.data = file.bytes().data + start + tensor.begin;
    if (reinterpret_cast<uintptr_t>(entry.data) % (tensor.dtype->bits / 8) != 0) {
      entry.copy = aligned_copy(entry.data, tensor.end - tensor.begin);
      entry.data = entry.copy.get();
    }
    entries_.emplace(tensor.name, std::move(entry));
  }
}

DType Safetensors::dtype(const std::string& name) const {
  return find_dtype(entry(name).dtype)->dtype;
}

const void* Safetensors::data(const std::string& name, DType dtype,
                              const std::vector<int64_t>& shape) const {
  const Entry& found = entry(name);
  const std::string where = path_ + ": tensor " + name;
  if (find_dtype(found.dtype)->dtype != dtype) {
    const auto* expected = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                        [&](const DTypeName& d) { return d.dtype == dtype; });
    throw BundleError(where + ": expected dtype " + expected->name + ", found " + found.dtype);
  }
  if (found.shape != shape) {
    throw BundleError(where + ": expected shape " + to_string(shape) + ", found " +
                      to_string(found.shape));
  }
  return found.data;
}

const Safetensors::Entry& Safetensors::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw BundleError(path_ + ": has no tensor " + name);
  return found->second;
}

int64_t Safetensors::leading_size(const std::string& name) const {
  const Entry& found = entry(name);
  return found.shape.empty() ? 0 : found.shape[0];
}

}  // namespace recengine
