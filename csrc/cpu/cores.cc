#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#include "recengine/context.h"

namespace recengine {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

int affinity_cores() {
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 2) {
    cpu_set_t* mask = CPU_ALLOC(capacity);
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    const bool known = sched_getaffinity(0, bytes, mask) == 0;
    const bool too_small = !known && errno == EINVAL;
    const int cores = known ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (known) return cores;
    if (!too_small) break;
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

// cgroup v2 writes "quota period" in microseconds, or "max period".
double quota_v2(const std::string& directory) {
  std::ifstream file(directory + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return kUnlimited;
  return std::strtod(quota.c_str(), nullptr) / period;
}

double quota_v1(const std::string& directory) {
  std::ifstream quota_file(directory + "/cpu.cfs_quota_us");
  std::ifstream period_file(directory + "/cpu.cfs_period_us");
  double quota = 0;
  double period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) {
    return kUnlimited;
  }
  return quota / period;
}

// The smallest quota on the way from this process's cgroup up to the root that we can see.
double smallest_on_the_way_up(const std::string& root, std::string path,
                              double (*quota)(const std::string&)) {
  double smallest = quota(root);
  while (path.size() > 1) {
    smallest = std::min(smallest, quota(root + path));
    path.resize(path.rfind('/'));
  }
  return smallest;
}

// Lines of /proc/self/cgroup: "0::/path" for v2, "4:cpu,cpuacct:/path" for a v1 controller.
double cgroup_cores() {
  std::ifstream file("/proc/self/cgroup");
  double cores = kUnlimited;
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/') {
      continue;
    }
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      cores = std::min(cores, smallest_on_the_way_up("/sys/fs/cgroup", path, quota_v2));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      cores = std::min(cores, smallest_on_the_way_up("/sys/fs/cgroup/cpu", path, quota_v1));
    }
  }
  return cores;
}

}  // namespace

int usable_cores() {
  const int cores = std::max(1, affinity_cores());
  const double quota = std::ceil(cgroup_cores());
  return quota < cores ? std::max(1, static_cast<int>(quota)) : cores;
}

}  // namespace recengine
