//! Moves a zygote's memory onto large pages, once, before anything is forked from it.
//!
//! A fork copies what a page table says of each small page, and the end of the copy takes it back: with some thousand small
//! pages that is half of what a short case costs. Small pages that are parts of one large page the kernel handles together.
//! Nothing else changes: addresses, contents and rights stay, a forked process still copies only the small pages that it
//! writes. The interpreter's code is moved as well: a forked process finds it mapped. Where the kernel has no large page
//! to give, the memory stays as it is.

use std::fs;
use std::io;
use std::ptr;

use super::zygote::{NOT_JAILED, PyOS_BeforeFork};
use crate::layers::check;

const LARGE: usize = 2 << 20;
/// A smaller region is not worth the part of a large page that it leaves unused.
const WORTHWHILE: usize = 512 << 10;
/// Since Linux 6.1.
const MADV_COLLAPSE: libc::c_int = 25;

/// Private memory of this process, from `start` up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    start: usize,
    end: usize,
    /// What the process may do with it.
    access: libc::c_int,
    /// Bytes of it that are there.
    resident: usize,
}

impl Region {
    fn length(&self) -> usize {
        self.end - self.start
    }

    fn holds(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Moving would make all of it resident.
    fn is_worthwhile(&self) -> bool {
        self.length() >= WORTHWHILE && self.resident * 2 >= self.length()
    }
}

/// Moves data, and the interpreter's code. The calling process must have one thread, and /proc.
pub fn gather() -> io::Result<()> {
    let regions = regions(&fs::read_to_string("/proc/self/smaps")?);
    let interpreter = PyOS_BeforeFork as *const () as usize;
    let wanted = |region: &&Region| region.access == DATA || region.holds(interpreter);
    for region in regions.iter().filter(|region| region.is_worthwhile()).filter(wanted) {
        // SAFETY: one thread, says the caller; the kernel has just told that the region is private and mapped, and with
        // which rights; the stack is none of them.
        unsafe { move_to_large_pages(region)? };
    }
    Ok(())
}

const DATA: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const CODE: libc::c_int = libc::PROT_READ | libc::PROT_EXEC;

/// Private data and code as /proc/PID/smaps tells of them, neighbours taken together.
fn regions(smaps: &str) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    let mut access = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (first, second) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if first == "Rss:" {
            if let (Some(_), Some(region), Ok(kilobytes)) = (access, regions.last_mut(), second.parse::<usize>()) {
                region.resident += kilobytes << 10;
            }
        } else if let Some((start, end)) = bounds(first) {
            access = match second {
                // The stack that this runs on must stay where it is.
                "rw-p" if !line.ends_with("[stack]") => Some(DATA),
                "r-xp" if !line.ends_with(']') => Some(CODE),
                _ => None,
            };
            match (access, regions.last_mut()) {
                (None, _) => {}
                (Some(access), Some(before)) if before.end == start && before.access == access => before.end = end,
                (Some(access), _) => regions.push(Region { start, end, access, resident: 0 }),
            }
        }
    }
    regions
}

/// The addresses with which a region's first line begins.
fn bounds(field: &str) -> Option<(usize, usize)> {
    let (start, end) = field.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

/// Copies the region to large pages and puts these in its place; false where the kernel has none to give.
///
/// # Safety
/// The region is private memory of this process with that access, without the stack, and nothing else runs in this process.
unsafe fn move_to_large_pages(region: &Region) -> io::Result<bool> {
    let (length, offset) = (region.length(), region.start % LARGE);
    let span = (offset + length).next_multiple_of(LARGE);
    // SAFETY: a new mapping at an address of the kernel's choice, with room to align it. The copy lies in it at the
    // offset that the region has in its own large pages. Between the copy and the exchange nothing writes to the region:
    // there is no other thread, and these calls use registers and the stack. The exchange is one step, also for code that
    // makes it. The last call takes back what is left of the mapping, which nothing else can have filled in between.
    unsafe {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let room = libc::mmap(ptr::null_mut(), span + LARGE, DATA, kind, -1, 0);
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let aligned = room.byte_add(room.addr().next_multiple_of(LARGE) - room.addr());
        let copy = aligned.byte_add(offset);
        ptr::copy_nonoverlapping(ptr::with_exposed_provenance::<u8>(region.start), copy.cast(), length);
        let is_large = libc::madvise(aligned, span, MADV_COLLAPSE) == 0
            && (region.access == DATA || libc::mprotect(copy, length, region.access) == 0);
        if is_large {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let place = ptr::with_exposed_provenance_mut::<libc::c_void>(region.start);
            if libc::mremap(copy, length, length, flags, place) == libc::MAP_FAILED {
                // The region may be gone already. Whoever started this process sees it end.
                libc::_exit(NOT_JAILED);
            }
        }
        check(libc::munmap(room, span + LARGE) as libc::c_long)?;
        Ok(is_large)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f1000000000-7f1000100000 rw-p 00000000 00:00 0 
Size:               1024 kB
Rss:                 900 kB
Anonymous:           900 kB
7f1000100000-7f1000180000 rw-p 00100000 08:00 77                         /usr/lib/libpython3.11.so.1.0
Rss:                 100 kB
7f1000180000-7f1000280000 r-xp 00000000 08:00 77                         /usr/lib/libpython3.11.so.1.0
Rss:                   4 kB
7f1000280000-7f1000380000 r--p 00000000 08:00 77                         /usr/lib/libpython3.11.so.1.0
Rss:                1024 kB
7f2000000000-7f2008000000 rw-p 00000000 00:00 0 
Rss:                   8 kB
7ffc00000000-7ffc00200000 rw-p 00000000 00:00 0                          [stack]
Rss:                2048 kB
";

    #[test]
    fn neighbours_are_one_region_and_the_stack_is_none() {
        let regions = regions(SMAPS);
        let of = |start, end, access, kilobytes: usize| Region { start, end, access, resident: kilobytes << 10 };
        let data = of(0x7f10_0000_0000, 0x7f10_0018_0000, DATA, 1000);
        let code = of(0x7f10_0018_0000, 0x7f10_0028_0000, CODE, 4);
        let sparse = of(0x7f20_0000_0000, 0x7f20_0800_0000, DATA, 8);
        assert_eq!(regions, [data, code, sparse]);
        assert_eq!([data, code, sparse].map(|region| region.is_worthwhile()), [true, false, false]);
    }

    #[test]
    fn memory_that_was_moved_holds_what_it_held_and_can_be_written() {
        let length = 3 * LARGE / 2;
        // SAFETY: a new mapping, used by this test alone and as long as it was made.
        unsafe {
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(ptr::null_mut(), length, DATA, kind, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let bytes = std::slice::from_raw_parts_mut(start.cast::<u8>(), length);
            bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index / 4096) as u8);
            let (begin, end) = (start.expose_provenance(), start.addr() + length);
            let region = Region { start: begin, end, access: DATA, resident: length };
            let moved = move_to_large_pages(&region).unwrap();
            let bytes = std::slice::from_raw_parts_mut(start.cast::<u8>(), length);
            assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == (index / 4096) as u8), "moved: {moved}");
            bytes.fill(7);
            libc::munmap(start, length);
        }
    }
}
