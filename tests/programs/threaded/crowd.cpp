// Threads that share their work out in each of the ways that C++ has: a queue with a condition variable, futures, and
// atomic counters with a barrier's turn. What is printed does not depend on who did what.
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <future>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

constexpr int kThreads = 4;
constexpr uint64_t kSpan = 60000;

// A queue of jobs; an empty one waits, a closed one ends its workers.
class Queue {
 public:
  void put(uint64_t job) {
    std::lock_guard<std::mutex> guard(lock_);
    jobs_.push_back(job);
    changed_.notify_one();
  }
  void close() {
    std::lock_guard<std::mutex> guard(lock_);
    closed_ = true;
    changed_.notify_all();
  }
  bool take(uint64_t &job) {
    std::unique_lock<std::mutex> guard(lock_);
    changed_.wait(guard, [this] { return closed_ || !jobs_.empty(); });
    if (jobs_.empty()) return false;
    job = jobs_.front();
    jobs_.pop_front();
    return true;
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<uint64_t> jobs_;
  bool closed_ = false;
};

static thread_local uint64_t divisions;

static uint64_t primes(uint64_t first, uint64_t end) {
  uint64_t found = 0;
  for (uint64_t n = first; n < end; n++) {
    bool prime = n > 1;
    for (uint64_t d = 2; prime && d * d <= n; d++) divisions++, prime = n % d != 0;
    found += prime;
  }
  return found;
}

int main() {
  Queue queue;
  std::array<std::atomic<uint64_t>, 16> found{};
  std::atomic<uint64_t> all_divisions{0};
  std::vector<std::thread> workers;
  for (int i = 0; i < kThreads; i++)
    workers.emplace_back([&] {
      for (uint64_t job; queue.take(job);) found[job] += primes(job * kSpan, (job + 1) * kSpan);
      all_divisions += divisions;
    });
  for (uint64_t job = 0; job < found.size(); job++) queue.put(job);
  queue.close();
  for (auto &worker : workers) worker.join();
  for (size_t job = 0; job < found.size(); job++) std::printf("%zu: %lu primes\n", job, (unsigned long)found[job]);
  std::printf("%lu divisions\n", (unsigned long)all_divisions);

  std::vector<std::future<uint64_t>> futures;
  for (uint64_t i = 0; i < 8; i++)
    futures.push_back(std::async(std::launch::async, [i] { return primes(i * 1000, i * 1000 + 20000); }));
  uint64_t sum = 0;
  for (auto &each : futures) sum += each.get();
  std::printf("%lu in all\n", (unsigned long)sum);
}
