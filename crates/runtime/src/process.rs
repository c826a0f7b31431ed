//! The promises a process under a file system makes (runtime spec 10.4), each one call.
//!
//! All but [`use_batch_scheduling`] need privilege; a daemon without it runs without them and says so in its log.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::unistd::Pid;

use crate::Errno;

/// Puts the calling thread into `SCHED_BATCH`: a woken thread does not preempt the one that woke it, so requests
/// gather. Needs no privilege.
///
/// # Errors
/// What the kernel says.
pub fn use_batch_scheduling() -> Result<(), Errno> {
    call::set_batch_scheduling()
}

/// Binds the calling thread to CPUs (`cpu-mask`).
///
/// # Errors
/// `EINVAL` when none of the CPUs exists.
pub fn bind_to_cpus(cpus: &[usize]) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Keeps all memory of the process, present and future, from being paged out. Pages are locked when they are first
/// touched, so memory that is only reserved stays free.
///
/// # Errors
/// `EPERM` or `ENOMEM` without the privilege or a large enough limit.
pub fn lock_memory() -> Result<(), Errno> {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)
}

/// Marks the calling thread as part of the I/O path, so that its allocations never wait for I/O it would have to do
/// itself. To be called before the thread makes its ring: the ring's workers inherit it.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`.
pub fn become_io_flusher() -> Result<(), Errno> {
    call::set_io_flusher()
}

/// Keeps the out-of-memory killer away from the process.
///
/// # Errors
/// `EACCES` without `CAP_SYS_RESOURCE`.
pub fn shun_out_of_memory_killer() -> Result<(), Errno> {
    std::fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Bytes sent on a TCP socket that the peer has not acknowledged yet (`SIOCOUTQ`), for the congestion rules.
///
/// # Errors
/// What the kernel says.
pub(crate) fn unacknowledged_bytes(socket: &OwnedFd) -> Result<u32, Errno> {
    call::unacknowledged_bytes(socket.as_fd())
}

#[allow(unsafe_code)]
mod call {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use crate::Errno;

    /// Linux 5.6, `linux/prctl.h`.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;

    nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, libc::c_int);

    pub(super) fn set_batch_scheduling() -> Result<(), Errno> {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the call only reads the parameters; pid 0 is the calling thread.
        Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) }).map(drop)
    }

    pub(super) fn set_io_flusher() -> Result<(), Errno> {
        // SAFETY: PR_SET_IO_FLUSHER takes plain numbers only.
        Errno::result(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) }).map(drop)
    }

    pub(super) fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
        let mut bytes = 0;
        // SAFETY: SIOCOUTQ writes one int to a live local.
        unsafe { siocoutq(socket.as_raw_fd(), &mut bytes) }?;
        Ok(bytes.max(0) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_scheduling_needs_no_privilege() {
        std::thread::spawn(|| {
            use_batch_scheduling().unwrap();
            let line = std::fs::read_to_string("/proc/thread-self/sched").unwrap();
            let policy = line.lines().find(|line| line.starts_with("policy")).unwrap();
            assert!(policy.ends_with('3'), "{policy}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_is_bound_to_the_cpus_asked_for() {
        std::thread::spawn(|| {
            bind_to_cpus(&[0]).unwrap();
            let set = nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap();
            assert!(set.is_set(0).unwrap());
            assert!((1..CpuSet::count()).all(|cpu| !set.is_set(cpu).unwrap()));
        })
        .join()
        .unwrap();
    }
}
