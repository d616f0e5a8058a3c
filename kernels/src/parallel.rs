//! Sharing a step of some ten to some hundred microseconds among the threads of a rayon pool. A thread that finds nothing to do for about 20 microseconds goes to
//! sleep there, and needs 50 to wake up: a token has hundreds of steps, and one layer of Llama-3.2-1B takes 1.5 milliseconds.
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it may sleep.
const PATIENCE: Duration = Duration::from_micros(500);

/// Attempts in a row between which the core is not offered to other programs.
const SPINS: usize = 32;

/// Runs other work of the pool until `done` or until there has been none for [`PATIENCE`].
fn attend_until(done: impl Fn() -> bool) {
    let mut since = Instant::now();
    let mut idle = 0;
    while !done() {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle = 0;
            continue;
        }
        if idle == 0 {
            since = Instant::now();
        }
        idle += 1;
        if idle % SPINS != 0 {
            spin_loop();
        } else if since.elapsed() > PATIENCE {
            return;
        } else {
            std::thread::yield_now();
        }
    }
}

/// Runs `work` on a thread of the current rayon pool, while the other threads stay awake for the parallel steps in it. From another thread every step would wait
/// for a sleeping thread to take it over: measured on Zen 5, SmolLM2-135M at 3 bits, one thread: a third of the time of a token.
pub fn attentive<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| attend_until(|| done.load(Ordering::Acquire)));
        }
        let _done = Done(&done);
        work()
    })
}

/// Runs `task` for parts of `0..n` until all is done, on the threads of the current rayon pool that are free. Each thread goes through a contiguous part of it,
/// in steps of three quarters of what is left of that; then it takes over half of the largest part of another thread.
pub(crate) fn share(n: usize, task: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads().min(n);
    if threads <= 1 {
        return task(0..n);
    }
    let parts = Parts::new(n, threads);
    let (arrived, left) = (AtomicUsize::new(1), AtomicUsize::new(n));
    let work = |own: usize| {
        parts.claim(own);
        while let Some(range) = parts.next(own) {
            let len = range.len();
            task(range);
            left.fetch_sub(len, Ordering::Release);
        }
    };
    rayon::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| {
                if left.load(Ordering::Acquire) > 0 {
                    work(arrived.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
        work(0);
        attend_until(|| left.load(Ordering::Acquire) == 0);
    });
}

/// What is left of the part of each thread.
struct Parts(Vec<AtomicU64>);

/// Set in a part whose thread has not come yet.
const UNCLAIMED: u64 = 1 << 63;

fn pack(range: Range<usize>) -> u64 {
    (range.start as u64) << 32 | range.end as u64
}

fn unpack(part: u64) -> Range<usize> {
    (part & !UNCLAIMED) as usize >> 32..part as u32 as usize
}

impl Parts {
    fn new(n: usize, threads: usize) -> Self {
        Parts((0..threads).map(|t| AtomicU64::new(pack(n * t / threads..n * (t + 1) / threads) | UNCLAIMED)).collect())
    }

    fn claim(&self, own: usize) {
        self.0[own].fetch_and(!UNCLAIMED, Ordering::Relaxed);
    }

    /// What a thread works on next.
    fn next(&self, own: usize) -> Option<Range<usize>> {
        loop {
            let step = |range: &Range<usize>| range.start + range.len() - range.len() / 4;
            let left = |part: u64| {
                let range = unpack(part);
                (!range.is_empty()).then(|| pack(step(&range)..range.end))
            };
            if let Ok(before) = self.0[own].fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) {
                let range = unpack(before);
                return Some(range.start..step(&range));
            }
            self.0[own].store(pack(self.take_over()?), Ordering::Relaxed);
        }
    }

    /// All of the largest part, or the second half where its thread is at work.
    fn take_over(&self) -> Option<Range<usize>> {
        loop {
            let part = self.0.iter().max_by_key(|part| unpack(part.load(Ordering::Relaxed)).len())?;
            let before = part.load(Ordering::Relaxed);
            let range = unpack(before);
            if range.is_empty() {
                return None;
            }
            let kept = if before & UNCLAIMED != 0 { 0 } else { range.len() / 2 };
            let after = pack(range.start..range.start + kept) | before & UNCLAIMED;
            if part.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Some(range.start + kept..range.end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn everything_is_done_once() {
        for (threads, n) in [(1, 5), (2, 1), (2, 2), (3, 16), (4, 3), (4, 1000), (5, 0)] {
            let done: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            let count = |range: Range<usize>| range.for_each(|i| _ = done[i].fetch_add(1, Ordering::Relaxed));
            pool(threads).install(|| {
                (0..20).for_each(|_| share(n, count));
                attentive(|| (0..20).for_each(|_| rayon::join(|| share(n, count), || share(n, count)).1));
            });
            assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 60), "{threads} threads, {n}");
        }
    }

    #[test]
    fn a_panic_comes_through() {
        let pool = pool(3);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.install(|| attentive(|| share(100, |range| assert!(!range.contains(&77)))));
        }));
        assert!(result.is_err());
    }

    #[test]
    fn threads_go_through_contiguous_parts() {
        let parts = Parts::new(16, 2);
        parts.claim(0);
        let all: Vec<_> = std::iter::from_fn(|| parts.next(0)).collect();
        assert_eq!(all, [0..6, 6..8, 8..14, 14..16]);
        let parts = Parts::new(32, 2);
        (0..2).for_each(|t| parts.claim(t));
        assert_eq!([parts.next(0), parts.next(1), parts.next(1)], [Some(0..12), Some(16..28), Some(28..31)]);
        assert_eq!([parts.next(1), parts.next(1), parts.next(0)], [Some(31..32), Some(14..16), Some(12..14)]);
        assert_eq!([parts.next(1), parts.next(0)], [None, None]);
    }
}
