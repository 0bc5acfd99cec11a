#include "triton/metrics.h"

#include <vector>

#include "triton/status.h"

namespace recengine::triton {
namespace {

struct ParameterDeleter {
  void operator()(TRITONSERVER_Parameter* parameter) const {
    TRITONSERVER_ParameterDelete(parameter);
  }
};
using ParameterPtr = std::unique_ptr<TRITONSERVER_Parameter, ParameterDeleter>;

}  // namespace

MetricFamily::MetricFamily(TRITONSERVER_MetricKind kind, const char* name,
                           const char* description) {
  TRITONSERVER_MetricFamily* family = nullptr;
  warn(TRITONSERVER_MetricFamilyNew(&family, kind, name, description));
  family_.reset(family);
}

void MetricFamily::Deleter::operator()(TRITONSERVER_MetricFamily* family) const {
  warn(TRITONSERVER_MetricFamilyDelete(family));
}

Metric::Metric(const MetricFamily& family, Labels labels) {
  if (family.handle() == nullptr) return;
  std::vector<ParameterPtr> owned;
  std::vector<const TRITONSERVER_Parameter*> parameters;
  for (const auto& [name, value] : labels) {
    owned.emplace_back(
        TRITONSERVER_ParameterNew(name, TRITONSERVER_PARAMETER_STRING, value.c_str()));
    parameters.push_back(owned.back().get());
  }
  TRITONSERVER_Metric* metric = nullptr;
  warn(TRITONSERVER_MetricNew(&metric, family.handle(), parameters.data(), parameters.size()));
  metric_.reset(metric);
}

void Metric::increment() const noexcept {
  if (metric_ != nullptr) warn(TRITONSERVER_MetricIncrement(metric_.get(), 1.0));
}

void Metric::set(double value) const noexcept {
  if (metric_ != nullptr) warn(TRITONSERVER_MetricSet(metric_.get(), value));
}

void Metric::Deleter::operator()(TRITONSERVER_Metric* metric) const {
  warn(TRITONSERVER_MetricDelete(metric));
}

}  // namespace recengine::triton
