#include "triton/metrics.h"

#include <array>

#include "triton/status.h"

namespace recengine::triton {
namespace {

struct ParameterDeleter {
  void operator()(TRITONSERVER_Parameter* parameter) const {
    TRITONSERVER_ParameterDelete(parameter);
  }
};
using ParameterPtr = std::unique_ptr<TRITONSERVER_Parameter, ParameterDeleter>;

ParameterPtr label(const char* name, const std::string& value) {
  return ParameterPtr(
      TRITONSERVER_ParameterNew(name, TRITONSERVER_PARAMETER_STRING, value.c_str()));
}

}  // namespace

ShedFamily::ShedFamily() {
  TRITONSERVER_MetricFamily* family = nullptr;
  warn(TRITONSERVER_MetricFamilyNew(&family, TRITONSERVER_METRIC_KIND_COUNTER,
                                    "recengine_shed_total",
                                    "Requests refused because the server is overloaded"));
  family_.reset(family);
}

void ShedFamily::Deleter::operator()(TRITONSERVER_MetricFamily* family) const {
  warn(TRITONSERVER_MetricFamilyDelete(family));
}

ShedCounter::ShedCounter(const ShedFamily& family, const std::string& model,
                         const std::string& version, const std::string& reason) {
  if (family.handle() == nullptr) return;
  const ParameterPtr owned[] = {label("model", model), label("version", version),
                                label("reason", reason)};
  std::array<const TRITONSERVER_Parameter*, 3> labels = {owned[0].get(), owned[1].get(),
                                                         owned[2].get()};
  TRITONSERVER_Metric* metric = nullptr;
  warn(TRITONSERVER_MetricNew(&metric, family.handle(), labels.data(), labels.size()));
  metric_.reset(metric);
}

void ShedCounter::increment() const noexcept {
  if (metric_ != nullptr) warn(TRITONSERVER_MetricIncrement(metric_.get(), 1.0));
}

void ShedCounter::Deleter::operator()(TRITONSERVER_Metric* metric) const {
  warn(TRITONSERVER_MetricDelete(metric));
}

}  // namespace recengine::triton
