//! A tree of processes as /proc shows it: its members, their threads, the CPU time they have used and have not been given.

use std::fs;
use std::time::Duration;

use crate::layers::process::cpu_time;

/// Children of a process, as its threads forked them. A process that is gone has none.
fn children(process: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// All descendants of `root`, without it.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut found = children(root);
    let mut next = 0;
    while next < found.len() {
        let more = children(found[next]);
        found.extend(more);
        next += 1;
    }
    found
}

/// Threads of the process that a thread belongs to.
pub fn threads(thread: i32) -> usize {
    fs::read_dir(format!("/proc/{thread}/task")).map_or(0, Iterator::count)
}

/// Number of a thread's process in its own process namespace.
pub fn number_inside(thread: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NStgid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

/// CPU time of `root`, of those it has waited for, and of all living descendants with those they have waited for.
pub fn tree_cpu_time(root: i32) -> Duration {
    let ticks: u64 = std::iter::once(root).chain(descendants(root)).filter_map(stat_ticks).sum();
    // SAFETY: sysconf without pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    Duration::from_millis(ticks * 1000 / per_second)
}

/// utime + stime + cutime + cstime of /proc/PID/stat, in clock ticks.
fn stat_ticks(process: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

/// CPU time of one program so far; a tree's is in ticks of 10 ms, a single process's exact.
pub fn used(root: i32, tree: bool) -> Duration {
    if tree { tree_cpu_time(root) } else { cpu_time(root).unwrap_or(Duration::ZERO) }
}

/// For how long a thread could have run so far, but had no processor: of all living threads that which had to wait longest.
/// A wait that goes on is counted when it ends. Zero where the kernel does not keep account of it.
pub fn starved(root: i32, tree: bool) -> Duration {
    let more = if tree { descendants(root) } else { Vec::new() };
    let waits = std::iter::once(root)
        .chain(more)
        .filter_map(|process| fs::read_dir(format!("/proc/{process}/task")).ok())
        .flat_map(|threads| threads.flatten())
        .filter_map(|thread| run_delay(&fs::read_to_string(thread.path().join("schedstat")).ok()?));
    waits.max().unwrap_or(Duration::ZERO)
}

/// The second of the three numbers of /proc/PID/task/TID/schedstat, in nanoseconds.
fn run_delay(schedstat: &str) -> Option<Duration> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_share_a_processor_each_is_starved_and_a_sleeper_is_not() {
        struct Child(std::process::Child);
        impl Drop for Child {
            fn drop(&mut self) {
                self.0.kill().and_then(|()| self.0.wait()).unwrap();
            }
        }
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let one = allowed.split([',', '-']).next().unwrap();
        let on_one = |shell: &str| {
            let mut command = std::process::Command::new("taskset");
            Child(command.args(["-c", one, "sh", "-c", shell]).spawn().unwrap())
        };
        let children = [on_one("while :; do :; done"), on_one("while :; do :; done"), on_one("exec sleep 5")];
        std::thread::sleep(Duration::from_millis(600));
        let [first, second, sleeper] = children.each_ref().map(|child| starved(child.0.id() as i32, true));
        drop(children);
        assert!(first > Duration::from_millis(100) && second > Duration::from_millis(100), "{first:?} {second:?}");
        assert!(sleeper < first.min(second), "{sleeper:?}");
    }

    #[test]
    fn this_process_has_threads_and_has_used_time() {
        let me = std::process::id() as i32;
        assert!(threads(me) >= 1);
        let until = std::time::Instant::now() + Duration::from_millis(30);
        while std::time::Instant::now() < until {}
        assert!(used(me, false) >= Duration::from_millis(10));
        assert!(used(me, true) <= Duration::from_secs(3600));
    }

    #[test]
    fn a_process_knows_its_own_number() {
        assert_eq!(number_inside(std::process::id() as i32), Some(std::process::id()));
    }

    #[test]
    fn a_child_is_a_descendant() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        assert!(descendants(std::process::id() as i32).contains(&(child.id() as i32)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
