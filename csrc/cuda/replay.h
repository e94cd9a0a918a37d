// A pass of many launches that is repeated with the same arrays and numbers is recorded as a graph:
// in a loop of training or inference the array library hands out the same memory every time. What
// is run once is launched directly.
#pragma once
#include <cstdint>
#include <list>
#include <string>
#include <utility>

namespace ost::OST_SET {

constexpr int kFewestLaunches = 16, kMostLaunches = 8192;  // for fewer a graph gains nothing; for more it is too large to keep
constexpr std::size_t kMostGraphs = 64, kMostSeen = 256;

enum class Ran { kDirectly, kRecorded, kReplayed };

// Graph is movable, launched by `launch`, and freed by its destructor.
template <class Graph>
class Replay {
 public:
  // direct() launches; record() returns a Graph of the same launches; launch(graph) runs it. The
  // key covers all that the launches depend on.
  template <class Direct, class Record, class Launch>
  Ran operator()(const std::string& key, Direct&& direct, Record&& record, Launch&& launch) {
    for (auto i = graphs_.begin(); i != graphs_.end(); ++i)
      if (i->first == key) {
        graphs_.splice(graphs_.begin(), graphs_, i);
        launch(graphs_.front().second);
        return Ran::kReplayed;
      }
    for (auto i = seen_.begin(); i != seen_.end(); ++i)
      if (*i == key) {
        seen_.erase(i);
        graphs_.emplace_front(key, record());
        if (graphs_.size() > kMostGraphs) graphs_.pop_back();
        launch(graphs_.front().second);
        return Ran::kRecorded;
      }
    direct();
    seen_.push_front(key);
    if (seen_.size() > kMostSeen) seen_.pop_back();
    return Ran::kDirectly;
  }
  std::size_t graphs() const { return graphs_.size(); }

 private:
  std::list<std::pair<std::string, Graph>> graphs_;  // most recently used first
  std::list<std::string> seen_;
};

}  // namespace ost::OST_SET
