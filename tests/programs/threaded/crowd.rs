//! Threads that send each other numbers through channels, count under a lock, and wait for each other at a barrier.
//! What is printed does not depend on who did what.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Barrier, Mutex, RwLock};
use std::thread;
use std::time::Duration;

const THREADS: u64 = 4;
const ROUNDS: u64 = 30;

fn steps(mut n: u64) -> u64 {
    let mut count = 0;
    while n != 1 {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        count += 1;
    }
    count
}

fn main() {
    let longest = Arc::new(Mutex::new(BTreeMap::new()));
    let total = Arc::new(AtomicU64::new(0));
    let limit = Arc::new(RwLock::new(0));
    let barrier = Arc::new(Barrier::new(THREADS as usize));
    let (results, received) = mpsc::channel();
    let workers: Vec<_> = (0..THREADS)
        .map(|id| {
            let (longest, total, limit) = (longest.clone(), total.clone(), limit.clone());
            let (barrier, results) = (barrier.clone(), results.clone());
            thread::Builder::new()
                .name(format!("worker {id}"))
                .spawn(move || {
                    for round in 0..ROUNDS {
                        if barrier.wait().is_leader() {
                            *limit.write().unwrap() = (round + 1) * 12_000;
                        }
                        barrier.wait();
                        let end = *limit.read().unwrap();
                        let mut best = (0, 0);
                        for n in (end - 12_000 + 1 + id..=end).step_by(THREADS as usize) {
                            let count = steps(n);
                            total.fetch_add(count, Ordering::Relaxed);
                            best = best.max((count, n));
                        }
                        let mut table = longest.lock().unwrap();
                        let entry = table.entry(round).or_insert(best);
                        *entry = (*entry).max(best);
                    }
                    results.send((id, THREADS * id)).unwrap();
                })
                .unwrap()
        })
        .collect();
    drop(results);
    for worker in workers {
        worker.join().unwrap();
    }
    for (round, (count, n)) in longest.lock().unwrap().iter() {
        println!("round {round}: {n} takes {count} steps");
    }
    println!("{} steps in all", total.load(Ordering::Relaxed));
    let mut order: Vec<_> = received.iter().collect();
    order.sort();
    println!("{order:?}");
    let waited = thread::spawn(|| thread::park_timeout(Duration::from_millis(5)));
    println!("{:?}", waited.join().is_ok());
}
