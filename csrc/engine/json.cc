#include "engine/json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "recengine/error.h"

namespace recengine {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 32;

// What stands in the document, short enough for a message.
std::string describe(const json& value) {
  if (value.is_object() || value.is_array()) return std::string("an ") + value.type_name();
  constexpr size_t kMaxLength = 60;
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= kMaxLength ? text : text.substr(0, kMaxLength) + "...";
}

// Called for every event of the parser; throws on what the parser itself would let pass.
class Guard {
 public:
  explicit Guard(const std::string& file) : file_(file) {}

  bool operator()(int depth, json::parse_event_t event, const json& value) {
    if (depth > kMaxDepth) {
      throw BundleError(file_ + ": nests deeper than " + std::to_string(kMaxDepth) + " levels");
    }
    if (value.is_string() && value.get_ref<const std::string&>().find('\0') != std::string::npos) {
      throw BundleError(file_ + ": string " + describe(value) + " holds a zero byte");
    }
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key && !keys_.back().insert(value).second) {
      throw BundleError(file_ + ": key " + describe(value) + " stands twice in one object");
    }
    return true;
  }

 private:
  const std::string& file_;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

json parse_json(const std::string& file, Span<const uint8_t> text) {
  try {
    return json::parse(
        text.begin(), text.end(),
        [guard = Guard(file)](int depth, json::parse_event_t event, json& value) mutable {
          return guard(depth, event, value);
        });
  } catch (const json::parse_error& error) {
    // Not what(), which quotes the bytes whatever they are.
    throw BundleError(file + ": not JSON: error at byte " + std::to_string(error.byte));
  } catch (const json::out_of_range&) {
    throw BundleError(file + ": a number is beyond fp64");
  }
}

void JsonValue::require_only(std::initializer_list<const char*> keys) const {
  if (!value_->is_object()) fail("an object");
  for (const auto& item : value_->items()) {
    const bool known =
        std::any_of(keys.begin(), keys.end(), [&](const char* key) { return item.key() == key; });
    if (!known) member(item.key(), item.value()).fail_plainly("unknown key");
  }
}

JsonValue JsonValue::at(const char* key) const {
  if (!value_->is_object()) fail("an object");
  const auto found = value_->find(key);
  if (found == value_->end()) member(key, *value_).fail_plainly("missing");
  return member(key, *found);
}

std::optional<JsonValue> JsonValue::find(const char* key) const {
  if (!value_->is_object()) fail("an object");
  const auto found = value_->find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return member(key, *found);
}

std::vector<std::pair<std::string, JsonValue>> JsonValue::members() const {
  if (!value_->is_object()) fail("an object");
  std::vector<std::pair<std::string, JsonValue>> members;
  for (const auto& item : value_->items()) {
    members.emplace_back(item.key(), member(item.key(), item.value()));
  }
  return members;
}

std::vector<JsonValue> JsonValue::elements() const {
  if (!value_->is_array()) fail("an array");
  std::vector<JsonValue> elements;
  for (const json& element : *value_) {
    const std::string index = "[" + std::to_string(elements.size()) + "]";
    elements.push_back(JsonValue(&element, file_, path_ + index));
  }
  return elements;
}

std::string JsonValue::as_string() const {
  if (!value_->is_string()) fail("a string");
  return value_->get<std::string>();
}

bool JsonValue::as_bool() const {
  if (!value_->is_boolean()) fail("true or false");
  return value_->get<bool>();
}

int64_t JsonValue::as_int(int64_t minimum) const {
  const bool fits = value_->is_number_integer() &&
                    !(value_->is_number_unsigned() && value_->get<uint64_t>() > INT64_MAX);
  if (!fits || value_->get<int64_t>() < minimum) {
    fail(minimum == INT64_MIN ? "an int64" : "an integer >= " + std::to_string(minimum));
  }
  return value_->get<int64_t>();
}

double JsonValue::as_number() const {
  if (!value_->is_number()) fail("a number");
  const auto number = value_->get<double>();
  if (std::abs(number) > double{std::numeric_limits<float>::max()}) fail("a number within fp32");
  return number;
}

int JsonValue::as_one_of(std::initializer_list<const char*> words) const {
  std::string expected;
  if (value_->is_string()) {
    const auto& text = value_->get_ref<const std::string&>();
    const auto found = std::find(words.begin(), words.end(), text);
    if (found != words.end()) return static_cast<int>(found - words.begin());
  }
  for (const char* word : words) {
    expected += (expected.empty() ? "\"" : " or \"") + std::string(word) + "\"";
  }
  fail(expected);
}

void JsonValue::fail(const std::string& expected) const {
  fail_plainly("expected " + expected + ", found " + describe(*value_));
}

void JsonValue::fail_plainly(const std::string& message) const {
  throw BundleError(file_ + ": " + (path_.empty() ? "the document" : path_) + ": " + message);
}

JsonValue JsonValue::member(const std::string& key, const json& value) const {
  return JsonValue(&value, file_, path_.empty() ? key : path_ + "." + key);
}

}  // namespace recengine
