#pragma once

#include <memory>
#include <string>

#include "triton/api.h"

namespace recengine::triton {

// The metric family recengine_shed_total{model, version, reason}, one per process. A server
// without metrics has none; counting is then a no-op.
class ShedFamily {
 public:
  ShedFamily();
  TRITONSERVER_MetricFamily* handle() const { return family_.get(); }

 private:
  struct Deleter {
    void operator()(TRITONSERVER_MetricFamily* family) const;
  };
  std::unique_ptr<TRITONSERVER_MetricFamily, Deleter> family_;
};

// Requests of one model that were shed for one reason.
class ShedCounter {
 public:
  ShedCounter(const ShedFamily& family, const std::string& model, const std::string& version,
              const std::string& reason);
  void increment() const noexcept;

 private:
  struct Deleter {
    void operator()(TRITONSERVER_Metric* metric) const;
  };
  std::unique_ptr<TRITONSERVER_Metric, Deleter> metric_;
};

}  // namespace recengine::triton
