#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "recengine/tensor.h"

namespace recengine {

// Parses a document that may come from anywhere. Throws BundleError naming `file` when it is not
// JSON, nests deeper than 32 levels, has a key twice in one object or a zero byte in a string.
nlohmann::json parse_json(const std::string& file, Span<const uint8_t> text);

// A value of a parsed document and its path in it. Each accessor throws BundleError with file,
// path, what was expected and what was found. Borrows the document.
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, std::string file)
      : JsonValue(&value, std::move(file), "") {}

  const std::string& path() const { return path_; }

  // The document is an object that has no other keys than these.
  void require_only(std::initializer_list<const char*> keys) const;

  JsonValue at(const char* key) const;
  std::optional<JsonValue> find(const char* key) const;  // none when absent or null
  std::vector<std::pair<std::string, JsonValue>> members() const;
  std::vector<JsonValue> elements() const;

  bool is_string() const { return value_->is_string(); }
  std::string as_string() const;
  bool as_bool() const;
  int64_t as_int(int64_t minimum) const;
  double as_number() const;  // that fp32 can hold

  // The position in `words` of a string that must be one of them.
  int as_one_of(std::initializer_list<const char*> words) const;

  [[noreturn]] void fail(const std::string& expected) const;  // ..., found <value>
  [[noreturn]] void fail_plainly(const std::string& message) const;

 private:
  JsonValue(const nlohmann::json* value, std::string file, std::string path)
      : value_(value), file_(std::move(file)), path_(std::move(path)) {}
  JsonValue member(const std::string& key, const nlohmann::json& value) const;

  const nlohmann::json* value_;
  std::string file_;
  std::string path_;
};

}  // namespace recengine
