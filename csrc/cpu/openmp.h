// The threads of an OpenMP runtime that another library of the process has loaded. After a parallel region they spin for some
// milliseconds, and a worker of ours that is woken then has half a core: an LSTM between two layers of PyTorch took twice as long as
// alone. So where they are seen to spin the team is made of them.
#pragma once

namespace ost {

class OpenMp {
 public:
  // The team of the calling thread: a runtime keeps a team for each thread that has used it.
  static OpenMp& mine();
  OpenMp() = default;
  ~OpenMp();
  OpenMp(const OpenMp&) = delete;
  OpenMp& operator=(const OpenMp&) = delete;

  // How many threads, the calling one included, spin and would work with it; 1 if none.
  int spinning();
  // Runs fn(context, index) on all threads of the team, the caller being index 0: a runtime that is asked for fewer ends the others.
  void run(void (*fn)(void* context, int index), void* context);
  // What a job has shown: a worker lost its core, or was woken and came late. The first, or the second twice in a
  // row, is reason to look for a runtime where the next job begins: where this one ends its threads may have gone to sleep.
  void suspect(bool put_aside, bool woken, bool late);
  // Looks at once; the number of threads that were found, the calling one included.
  int probe();
  // The threads of a runtime are not there in a child.
  static void forget_all();

 private:
  void look();
  void forget();
  static constexpr int kWatched = 4;  // threads whose state is read: they all spin, or none does
  int strikes_ = 0, count_ = 0, runtime_ = -1, threads_ = 1;
  bool probed_ = false;
  double looked_ = 0;
  unsigned long long libraries_ = 0;  // that were loaded when it was probed
  int files_[kWatched] = {};
};

}  // namespace ost
