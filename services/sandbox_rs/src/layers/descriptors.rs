//! File descriptors: passing them over a socket, putting them in place, closing all others.
//!
//! A zygote receives headers and descriptors only. What a descriptor holds is read by the process forked for it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{check, weakened};

/// Most descriptors in one message.
const MOST_DESCRIPTORS: usize = 8;
/// Descriptors are moved above this number before they are put in place, so that none overwrites another.
const ABOVE_PLACES: RawFd = 32;

/// Sends one packet with descriptors attached.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    assert!(descriptors.len() <= MOST_DESCRIPTORS, "a packet carries at most {MOST_DESCRIPTORS} descriptors");
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut libc::c_void, iov_len: bytes.len() };
    let mut control = [0u64; 16];
    // SAFETY: an all-zero msghdr is valid; every pointer set below outlives the call, and `control` holds
    // CMSG_SPACE(8 descriptors) = 48 bytes with the alignment of a cmsghdr.
    let sent = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        if !descriptors.is_empty() {
            let size = mem::size_of_val(descriptors) as u32;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size) as usize;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
            std::ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), size as usize);
        }
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    check(sent as libc::c_long).map(drop)
}

/// Receives one packet into `buffer`; 0 bytes means that the other side is gone. Where this process may open too few
/// descriptors for all that are attached it gets none: some of them would be taken for others.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0u64; 16];
    let mut descriptors = Vec::new();
    // SAFETY: as in `send`; each descriptor found in the control data was just installed in this process by the
    // kernel, so that owning it is right.
    let received = unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        let received = check(libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) as libc::c_long)?;
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let values = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / mem::size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(values.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            descriptors.clear();
        }
        received
    };
    Ok((received as usize, descriptors))
}

/// The other side receives what was sent, and then that this one is gone.
pub fn end_of_packets(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) } as libc::c_long).map(drop)
}

/// Whether the other side of a socket is gone. A process closes its sockets before its children are told of its end.
pub fn is_deserted(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid entry; a time-out of 0 never blocks.
    check(unsafe { libc::poll(&mut entry, 1, 0) } as libc::c_long)?;
    Ok(entry.revents & libc::POLLHUP != 0)
}

/// A connected pair of packet sockets, closed on exec.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [-1; 2];
    // SAFETY: `pair` has room for the two descriptors, which are owned by nobody else.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        check(libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) as libc::c_long)?;
        Ok((OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])))
    }
}

/// A pipe closed on exec: the end to read, the end to write.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: as in `packet_pair`.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) as libc::c_long)?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn memory_file(flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated; the new descriptor is owned by nobody else.
    unsafe {
        let flags = libc::MFD_CLOEXEC | flags;
        Ok(OwnedFd::from_raw_fd(check(libc::memfd_create(c"payload".as_ptr(), flags) as libc::c_long)? as RawFd))
    }
}

/// An empty file in memory for what a program writes; how large it may get is for the program's limits.
pub fn empty_file() -> io::Result<OwnedFd> {
    memory_file(0)
}

/// A sealed file in memory that holds `bytes`, positioned at its start.
pub fn sealed_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memory_file(libc::MFD_ALLOW_SEALING)?;
    let mut written = 0;
    while written < bytes.len() {
        let rest = &bytes[written..];
        // SAFETY: `rest` is valid for its length.
        let count = unsafe { libc::pwrite(file.as_raw_fd(), rest.as_ptr().cast(), rest.len(), written as libc::off_t) };
        written += check(count as libc::c_long)? as usize;
    }
    if weakened::is_off("seals") {
        return Ok(file);
    }
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: fcntl on a descriptor that we own, without pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } as libc::c_long)?;
    Ok(file)
}

/// A copy with a high number, closed on exec.
pub fn lift(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: fcntl without pointers; the new descriptor is owned by nobody else.
    unsafe {
        let copy = libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE_PLACES);
        Ok(OwnedFd::from_raw_fd(check(copy as libc::c_long)? as RawFd))
    }
}

/// Puts `descriptors[i]` at number `i`, open across exec only for 0, 1 and 2. All of them must have been lifted.
pub fn place(descriptors: &[OwnedFd]) -> io::Result<()> {
    for (number, descriptor) in descriptors.iter().enumerate() {
        debug_assert!(descriptor.as_raw_fd() >= ABOVE_PLACES);
        let flags = if number < 3 { 0 } else { libc::O_CLOEXEC };
        // SAFETY: dup3 without pointers. What stood at `number` is replaced on purpose.
        check(unsafe { libc::dup3(descriptor.as_raw_fd(), number as RawFd, flags) } as libc::c_long)?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on. The caller must not use, or drop, an owner of one of them afterwards.
pub fn close_from(first: RawFd) -> io::Result<()> {
    if weakened::is_off("descriptors") {
        return Ok(());
    }
    // SAFETY: no pointers; the contract about owners is the caller's.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_packet_carries_bytes_and_descriptors() {
        let (ours, theirs) = packet_pair().unwrap();
        let (reader, writer) = pipe().unwrap();
        send(ours.as_fd(), b"header", &[writer.as_raw_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        let (count, mut descriptors) = receive(theirs.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"header");
        File::from(descriptors.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_socket_is_deserted_once_the_other_side_is_gone() {
        let (ours, theirs) = packet_pair().unwrap();
        assert!(!is_deserted(ours.as_fd()).unwrap());
        drop(theirs);
        assert!(is_deserted(ours.as_fd()).unwrap());
    }

    #[test]
    fn a_sealed_file_cannot_be_changed() {
        let mut file = File::from(sealed_file(b"payload").unwrap());
        assert!(file.write_all(b"x").is_err());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "payload");
    }
}
