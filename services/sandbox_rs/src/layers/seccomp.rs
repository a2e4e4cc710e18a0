//! seccomp: which system calls a program may make.
//!
//! A `Policy` gives each call number an action; `assemble` turns it into a balanced tree of comparisons (7 steps deep
//! instead of a list of a hundred), `install` puts it in force. Calls with the action `Ask` stop until the supervisor,
//! which holds the listener, has answered: so it counts processes exactly and names the call that ended a program.
//! Whoever asks after the supervisor is gone gets ENOSYS: the call never happens.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{sock_filter, sock_fprog};

use super::{check, weakened};

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Call numbers from here on are the x32 interface, which nobody needs.
const X32_INTERFACE: u32 = 0x4000_0000;
const OFFSET_OF_NUMBER: u32 = 0;
const OFFSET_OF_ARCHITECTURE: u32 = 4;
const OFFSET_OF_ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_ALWAYS: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// What happens on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    /// The call fails with this errno; for calls that programs make in passing.
    Refuse(i32),
    /// The supervisor decides.
    Ask,
    /// The process ends at once.
    Kill,
    /// Decided by the arguments.
    Compare(&'static Comparison),
}

/// Looks at the low 32 bits of arguments, which are all that the kernel reads of an `int`.
#[derive(Debug, PartialEq, Eq)]
pub struct Comparison {
    /// An argument's position, and the smallest and largest value that it may have.
    pub ranges: &'static [(u8, u32, u32)],
    /// Where every argument lies in its range.
    pub inside: &'static Action,
    pub outside: &'static Action,
}

/// Actions by call number, and the action for all others.
#[derive(Clone, Debug)]
pub struct Policy {
    pub actions: BTreeMap<u32, Action>,
    pub otherwise: Action,
}

/// A filter as the kernel takes it.
pub type Filter = Vec<sock_filter>;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// The policy as a BPF program: wrong architecture and x32 calls kill, the rest is a search tree over ranges.
pub fn assemble(policy: &Policy) -> Filter {
    let mut ranges: Vec<(u32, Action)> = vec![(0, policy.otherwise)];
    let mut push = |start: u32, action: Action| match ranges.last_mut() {
        Some(last) if last.0 == start => last.1 = action,
        Some(last) if last.1 == action => {}
        _ => ranges.push((start, action)),
    };
    for (&number, &action) in &policy.actions {
        push(number, action);
        push(number + 1, policy.otherwise);
    }
    // Ranges that an equal neighbour follows are merged once more: `push` may have overwritten a start.
    ranges.dedup_by(|next, previous| next.1 == previous.1);
    let mut filter = vec![
        statement(LOAD, OFFSET_OF_ARCHITECTURE),
        sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: AUDIT_ARCH_X86_64 },
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, OFFSET_OF_NUMBER),
        sock_filter { code: JUMP_AT_LEAST, jt: 0, jf: 1, k: X32_INTERFACE },
        statement(
            RETURN,
            if weakened::is_off("seccomp:x32") { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_KILL_PROCESS },
        ),
    ];
    if weakened::is_off("seccomp:architecture") {
        filter = vec![statement(LOAD, OFFSET_OF_NUMBER)];
    }
    filter.extend(search_tree(&ranges));
    filter
}

/// The end of a path through the tree.
fn leaf(action: Action) -> Filter {
    let code = match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Refuse(errno) => libc::SECCOMP_RET_ERRNO | (errno as u32 & 0xffff),
        Action::Ask => libc::SECCOMP_RET_USER_NOTIF,
        Action::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        Action::Compare(comparison) => return compare(comparison),
    };
    vec![statement(RETURN, code)]
}

fn compare(comparison: &Comparison) -> Filter {
    let mut program = leaf(*comparison.inside);
    for &(argument, least, most) in comparison.ranges.iter().rev() {
        // Comparisons are a few instructions long, far below the 255 that a conditional jump reaches.
        let outside = program.len() as u8;
        let mut test = vec![
            statement(LOAD, OFFSET_OF_ARGUMENTS + 8 * u32::from(argument)),
            sock_filter { jf: outside + 1, ..statement(JUMP_AT_LEAST, least) },
            sock_filter { jt: outside, ..statement(JUMP_ABOVE, most) },
        ];
        test.append(&mut program);
        program = test;
    }
    program.extend(leaf(*comparison.outside));
    program
}

fn search_tree(ranges: &[(u32, Action)]) -> Filter {
    if let [(_, action)] = ranges {
        return leaf(*action);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (search_tree(left), search_tree(right));
    let branch = statement(JUMP_AT_LEAST, right[0].0);
    // A conditional jump reaches 255 instructions; beyond, it lands on a long one.
    let mut tree = match u8::try_from(below.len()) {
        Ok(skipped) => vec![sock_filter { jt: skipped, ..branch }],
        Err(_) => vec![sock_filter { jf: 1, ..branch }, statement(JUMP_ALWAYS, below.len() as u32)],
    };
    tree.extend(below);
    tree.extend(above);
    tree
}

/// Puts the filter in force for the calling thread and its children, and returns the listener of `Ask`.
/// `no_new_privs` must be in force.
pub fn install(filter: &Filter) -> io::Result<OwnedFd> {
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` and the filter it points to outlive the call; the new descriptor is owned by nobody else.
    unsafe {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let listener = check(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program))?;
        Ok(OwnedFd::from_raw_fd(listener as RawFd))
    }
}

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub id: u64,
    /// Thread that asks, as the listener's process sees it.
    pub thread: i32,
    pub number: i32,
    pub arguments: [u64; 6],
}

const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;

/// Whether this process is under a filter: before it has its own, under one that was there before.
pub fn is_filtered() -> bool {
    // SAFETY: asks for a number; takes no pointer.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == libc::SECCOMP_MODE_FILTER as i32 }
}

/// Takes the next question; `None` if it was withdrawn (its thread was killed).
pub fn take_question(listener: BorrowedFd<'_>) -> io::Result<Option<Question>> {
    // SAFETY: an all-zero seccomp_notif is what the kernel demands; it writes one of that size.
    unsafe {
        let mut question: libc::seccomp_notif = mem::zeroed();
        match check(libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &mut question) as libc::c_long) {
            Ok(_) => Ok(Some(Question {
                id: question.id,
                thread: question.pid as i32,
                number: question.data.nr,
                arguments: question.data.args,
            })),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Answers a question: the call goes on (`Ok`) or fails with an errno. A question withdrawn meanwhile is no error.
pub fn answer(listener: BorrowedFd<'_>, id: u64, verdict: Result<(), i32>) -> io::Result<()> {
    // SAFETY: as above; the kernel reads one seccomp_notif_resp.
    unsafe {
        let mut response: libc::seccomp_notif_resp = mem::zeroed();
        response.id = id;
        match verdict {
            Ok(()) => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Err(errno) => response.error = -errno,
        }
        match check(libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &mut response) as libc::c_long) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Tries a filter that refuses `getppid` with a number of its own.
pub fn probe_filter() -> io::Result<bool> {
    super::no_new_privs::apply()?;
    let actions = BTreeMap::from([(libc::SYS_getppid as u32, Action::Refuse(libc::EXFULL))]);
    let filter = assemble(&Policy { actions, otherwise: Action::Allow });
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: as in `install`; getppid takes nothing.
    unsafe {
        check(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program))?;
        let refused = libc::syscall(libc::SYS_getppid);
        Ok(refused == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EXFULL))
    }
}

/// Tries whether the kernel gives out a listener.
pub fn probe_listener() -> io::Result<bool> {
    super::no_new_privs::apply()?;
    let actions = BTreeMap::from([(libc::SYS_getppid as u32, Action::Ask)]);
    install(&assemble(&Policy { actions, otherwise: Action::Allow })).map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(action: Action) -> u32 {
        leaf(action)[0].k
    }

    fn decide(filter: &Filter, architecture: u32, number: u32) -> u32 {
        decide_with(filter, architecture, number, [0; 6])
    }

    /// Runs the filter as the kernel does, for the seven instructions that `assemble` emits.
    fn decide_with(filter: &Filter, architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut register) = (0, 0);
        loop {
            let instruction = filter[at];
            at += 1;
            match instruction.code {
                LOAD if instruction.k == OFFSET_OF_ARCHITECTURE => register = architecture,
                LOAD if instruction.k == OFFSET_OF_NUMBER => register = number,
                LOAD => register = arguments[((instruction.k - OFFSET_OF_ARGUMENTS) / 8) as usize],
                JUMP_EQUAL => {
                    at += usize::from(if register == instruction.k { instruction.jt } else { instruction.jf })
                }
                JUMP_AT_LEAST => {
                    at += usize::from(if register >= instruction.k { instruction.jt } else { instruction.jf });
                }
                JUMP_ABOVE => {
                    at += usize::from(if register > instruction.k { instruction.jt } else { instruction.jf });
                }
                JUMP_ALWAYS => at += instruction.k as usize,
                RETURN => return instruction.k,
                code => panic!("unexpected instruction {code}"),
            }
        }
    }

    #[test]
    fn the_tree_decides_as_the_table_does() {
        let mut actions = BTreeMap::new();
        for number in 0..460u32 {
            match number % 7 {
                0 | 1 => drop(actions.insert(number, Action::Allow)),
                3 => drop(actions.insert(number, Action::Refuse(1))),
                5 if number % 2 == 0 => drop(actions.insert(number, Action::Kill)),
                _ => {}
            }
        }
        let sparse = BTreeMap::from_iter(actions.into_iter().filter(|(number, _)| number % 3 != 0 || *number < 90));
        let policy = Policy { actions: sparse, otherwise: Action::Ask };
        let filter = assemble(&policy);
        for number in 0..1000 {
            let expected = policy.actions.get(&number).copied().unwrap_or(Action::Ask);
            assert_eq!(decide(&filter, AUDIT_ARCH_X86_64, number), code(expected), "call {number}");
        }
    }

    #[test]
    fn other_architectures_and_x32_calls_kill() {
        let filter = assemble(&Policy { actions: BTreeMap::new(), otherwise: Action::Allow });
        assert_eq!(decide(&filter, 0x4000_0003, 1), code(Action::Kill));
        assert_eq!(decide(&filter, AUDIT_ARCH_X86_64, X32_INTERFACE + 1), code(Action::Kill));
        assert_eq!(decide(&filter, AUDIT_ARCH_X86_64, 1), code(Action::Allow));
    }
    #[test]
    fn a_comparison_needs_every_argument_in_its_range() {
        static BOTH: Comparison =
            Comparison { ranges: &[(0, 1, 1), (1, 8, 15)], inside: &Action::Allow, outside: &Action::Refuse(7) };
        let actions = BTreeMap::from([(72, Action::Compare(&BOTH)), (73, Action::Kill)]);
        let filter = assemble(&Policy { actions, otherwise: Action::Ask });
        for first in 0..3 {
            for second in 0..20 {
                let expected = if first == 1 && (8..=15).contains(&second) { Action::Allow } else { Action::Refuse(7) };
                let decided = decide_with(&filter, AUDIT_ARCH_X86_64, 72, [first, second, 0, 0, 0, 0]);
                assert_eq!(decided, code(expected), "{first} {second}");
            }
        }
        assert_eq!(decide(&filter, AUDIT_ARCH_X86_64, 71), code(Action::Ask));
        assert_eq!(decide(&filter, AUDIT_ARCH_X86_64, 73), code(Action::Kill));
    }

    /// The list that a plain generator would emit: one comparison per call, in order.
    fn linear(policy: &Policy) -> Filter {
        let mut filter = assemble(&Policy { actions: BTreeMap::new(), otherwise: Action::Ask });
        filter.pop();
        for (&number, &action) in &policy.actions {
            let decision = leaf(action);
            filter.push(sock_filter { jf: decision.len() as u8, ..statement(JUMP_EQUAL, number) });
            filter.extend(decision);
        }
        filter.extend(leaf(policy.otherwise));
        filter
    }

    #[test]
    fn the_tree_of_each_real_policy_decides_every_call_as_a_list_does() {
        use super::super::system_calls::{Grants, Program, policy};
        // Miri takes half an hour for all of them.
        let stride = if cfg!(miri) { 37 } else { 1 };
        for program in [Program::Alone, Program::WithChildren, Program::Cases] {
            for (signals, filtered) in [(false, false), (false, true), (true, false), (true, true)] {
                let policy = policy(Grants { program, signals, filtered });
                let (tree, list) = (assemble(&policy), linear(&policy));
                for number in (0..1200).step_by(stride) {
                    for first in [0, 1, 8, 9, 15, 16, 9999] {
                        let arguments = [first, first, 9, 0, 0, 0];
                        assert_eq!(
                            decide_with(&tree, AUDIT_ARCH_X86_64, number, arguments),
                            decide_with(&list, AUDIT_ARCH_X86_64, number, arguments),
                            "call {number} with {first}"
                        );
                    }
                }
            }
        }
    }
}
