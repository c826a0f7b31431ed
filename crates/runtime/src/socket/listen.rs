//! Sockets before they are streams: options, listening, accepting, connecting.

use std::fmt::Debug;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage,
    sockopt,
};

use crate::Errno;
use crate::ring::{Descriptor, OperationId, Readiness, Ring};

/// Options of a TCP socket to the peer, set before it listens or connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// `sndbuf-size`, in bytes; 0 leaves it to the kernel's tuning.
    pub send_buffer_bytes: u32,
    /// `rcvbuf-size`, in bytes; 0 leaves it to the kernel's tuning.
    pub receive_buffer_bytes: u32,
}

impl SocketOptions {
    fn apply(self, socket: &OwnedFd) -> Result<(), Errno> {
        socket::setsockopt(socket, sockopt::ReuseAddr, &true)?;
        socket::setsockopt(socket, sockopt::TcpNoDelay, &true)?;
        socket::setsockopt(socket, sockopt::KeepAlive, &true)?;
        // The kernel doubles what it is asked for; DRBD's numbers are what the socket ends up with. The forced
        // variant exceeds the system's limit, as the module does, and needs privilege.
        if self.send_buffer_bytes > 0 {
            let bytes = self.send_buffer_bytes as usize / 2;
            socket::setsockopt(socket, sockopt::SndBufForce, &bytes)
                .or_else(|_| socket::setsockopt(socket, sockopt::SndBuf, &bytes))?;
        }
        if self.receive_buffer_bytes > 0 {
            let bytes = self.receive_buffer_bytes as usize / 2;
            socket::setsockopt(socket, sockopt::RcvBufForce, &bytes)
                .or_else(|_| socket::setsockopt(socket, sockopt::RcvBuf, &bytes))?;
        }
        Ok(())
    }
}

/// A socket waiting for connections, on a ring.
#[derive(Debug)]
pub struct Listener {
    socket: Descriptor,
    poll: Option<OperationId>,
    options: SocketOptions,
}

impl Listener {
    /// Listens on an address.
    ///
    /// # Errors
    /// `EADDRINUSE`, `EADDRNOTAVAIL` and what else the kernel says.
    pub fn bind(address: SocketAddr, options: SocketOptions) -> Result<Self, Errno> {
        let socket = new_socket(address)?;
        options.apply(&socket)?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        socket::listen(&socket, Backlog::new(5)?)?;
        Ok(Self { socket: Arc::new(socket), poll: None, options })
    }

    /// The address it listens on, with the port the kernel chose if 0 was asked for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_address(&self) -> Result<SocketAddr, Errno> {
        local_address(self.socket.as_fd())
    }

    /// Asks the ring to complete `token` when there is a connection to accept.
    pub fn arm<T: Copy + Debug>(&mut self, ring: &mut Ring<T>, token: T) {
        if self.poll.is_none() {
            self.poll = Some(ring.poll(&self.socket, Readiness::Readable, token));
        }
    }

    /// Takes the completion in and accepts one connection, with the options set; `None` if it has gone again.
    /// Arm again for the next.
    ///
    /// # Errors
    /// `EMFILE` and what else means that accepting cannot work now.
    pub fn accept(&mut self) -> Result<Option<(OwnedFd, SocketAddr)>, Errno> {
        self.poll = None;
        let accepted = match accepting::accept(self.socket.as_fd()) {
            Ok(accepted) => accepted,
            // A connection that died in the queue is the peer's affair, not the listener's.
            Err(
                Errno::EAGAIN
                | Errno::EINTR
                | Errno::ECONNABORTED
                | Errno::EPROTO
                | Errno::EPERM
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ETIMEDOUT,
            ) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        self.options.apply(&accepted)?;
        let Ok(peer) = peer_address(accepted.as_fd()) else { return Ok(None) };
        Ok(Some((accepted, peer)))
    }

    /// Stops listening.
    pub fn close<T: Copy + Debug>(self, ring: &mut Ring<T>) {
        // Shut down at once: the address is free for the next listener although the poll still holds the file.
        let _ = shut_down(self.socket.as_fd(), Shutdown::Both);
        if let Some(poll) = self.poll {
            ring.cancel(poll);
        }
    }
}

/// A connection attempt on a ring.
#[derive(Debug)]
pub struct Connecting {
    socket: Descriptor,
    poll: OperationId,
}

impl Connecting {
    /// Starts to connect from `local` (its port is ignored: any port, as DRBD does) to `remote`; `token` completes
    /// when the attempt has ended.
    ///
    /// # Errors
    /// What the kernel says at once: `EADDRNOTAVAIL`, `ENETUNREACH`, ...
    pub fn start<T: Copy + Debug>(
        ring: &mut Ring<T>,
        local: SocketAddr,
        remote: SocketAddr,
        options: SocketOptions,
        token: T,
    ) -> Result<Self, Errno> {
        let socket = new_socket(remote)?;
        options.apply(&socket)?;
        let mut local = local;
        local.set_port(0);
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
        match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(remote)) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let socket = Arc::new(socket);
        let poll = ring.poll(&socket, Readiness::Writable, token);
        Ok(Self { socket, poll })
    }

    /// Takes the completion in: the connected socket, or why there is none.
    ///
    /// # Errors
    /// `ECONNREFUSED`, `ETIMEDOUT` and whatever else ended the attempt.
    pub fn finish(self, result: Result<u32, Errno>) -> Result<OwnedFd, Errno> {
        result?;
        match socket::getsockopt(&self.socket, sockopt::SocketError)? {
            0 => {}
            errno => return Err(Errno::from_raw(errno)),
        }
        peer_address(self.socket.as_fd())?;
        match Arc::try_unwrap(self.socket) {
            Ok(socket) => Ok(socket),
            // The poll has completed, so nobody else holds the file; were it held, a second descriptor serves.
            Err(shared) => shared.try_clone().map_err(|_| Errno::EMFILE),
        }
    }

    /// Gives the attempt up. Its completion still arrives and is to be ignored.
    pub fn abandon<T: Copy + Debug>(self, ring: &mut Ring<T>) {
        let _ = shut_down(self.socket.as_fd(), Shutdown::Both);
        ring.cancel(self.poll);
    }
}

fn new_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(family, SockType::Stream, flags, None)?;
    if address.is_ipv6() {
        // The IPv4 side of the same port belongs to whoever binds that.
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(socket)
}

/// The address of this end of a socket.
///
/// # Errors
/// What the kernel says; `EAFNOSUPPORT` if it is not an internet socket.
pub fn local_address(socket: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    internet_address(&socket::getsockname::<SockaddrStorage>(socket.as_raw_fd())?)
}

/// The address of the other end of a socket.
///
/// # Errors
/// `ENOTCONN`, or `EAFNOSUPPORT` if it is not an internet socket.
pub fn peer_address(socket: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    internet_address(&socket::getpeername::<SockaddrStorage>(socket.as_raw_fd())?)
}

fn internet_address(address: &SockaddrStorage) -> Result<SocketAddr, Errno> {
    match address.family() {
        Some(AddressFamily::Inet) => {
            let address: Option<&SockaddrIn> = address.as_sockaddr_in();
            address.map(|address| SocketAddr::V4((*address).into())).ok_or(Errno::EAFNOSUPPORT)
        }
        Some(AddressFamily::Inet6) => {
            let address: Option<&SockaddrIn6> = address.as_sockaddr_in6();
            address.map(|address| SocketAddr::V6((*address).into())).ok_or(Errno::EAFNOSUPPORT)
        }
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

pub(super) fn set_nonblocking(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

pub(super) fn shut_down(socket: BorrowedFd<'_>, how: Shutdown) -> Result<(), Errno> {
    let how = match how {
        Shutdown::Read => socket::Shutdown::Read,
        Shutdown::Write => socket::Shutdown::Write,
        Shutdown::Both => socket::Shutdown::Both,
    };
    socket::shutdown(socket.as_raw_fd(), how)
}

/// Lets acknowledgements wait for others, or for data (`TCP_QUICKACK` 0).
#[allow(unsafe_code)]
pub(super) fn delay_acknowledgements(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let at_once: libc::c_int = 0;
    let bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel only reads so many bytes of a live local.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            std::ptr::from_ref(&at_once).cast(),
            bytes,
        )
    };
    Errno::result(result).map(drop)
}

/// Best effort: a socket that cannot linger closes in the usual way.
pub(super) fn reset_on_close(socket: BorrowedFd<'_>) {
    let _ = socket::setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// `accept4` as an owned descriptor.
#[allow(unsafe_code)]
mod accepting {
    use std::os::fd::FromRawFd;

    use super::{AsRawFd, BorrowedFd, Errno, OwnedFd, SockFlag, socket};

    pub(super) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let accepted = socket::accept4(listener.as_raw_fd(), flags)?;
        // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
    }
}
