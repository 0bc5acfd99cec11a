#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "triton/api.h"

namespace recengine::triton {

// Metrics of one name. A server without metrics has none; writing them is then a no-op.
class MetricFamily {
 public:
  MetricFamily(TRITONSERVER_MetricKind kind, const char* name, const char* description);
  TRITONSERVER_MetricFamily* handle() const { return family_.get(); }

 private:
  struct Deleter {
    void operator()(TRITONSERVER_MetricFamily* family) const;
  };
  std::unique_ptr<TRITONSERVER_MetricFamily, Deleter> family_;
};

// One of a family; its family outlives it.
class Metric {
 public:
  using Labels = std::initializer_list<std::pair<const char*, std::string>>;

  Metric(const MetricFamily& family, Labels labels);
  void increment() const noexcept;
  void set(double value) const noexcept;

 private:
  struct Deleter {
    void operator()(TRITONSERVER_Metric* metric) const;
  };
  std::unique_ptr<TRITONSERVER_Metric, Deleter> metric_;
};

// Those of this backend, one of each per process; all have the labels model and version.
struct Metrics {
  MetricFamily shed{TRITONSERVER_METRIC_KIND_COUNTER, "recengine_shed_total",  // and reason
                    "Requests refused because the server is overloaded"};
  MetricFamily waiting_rows{TRITONSERVER_METRIC_KIND_GAUGE, "recengine_waiting_rows",
                            "Users in requests that wait for a thread"};
  MetricFamily replays{TRITONSERVER_METRIC_KIND_COUNTER, "recengine_graph_replays_total",
                       "Lookups and searches on a GPU that were launched as one CUDA graph"};
};

}  // namespace recengine::triton
