//! Commands to the ublk driver that libublk does not have.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use libublk::sys;

use super::CONTROL_DEVICE;
use crate::Errno;

/// The room for a command in a submission of 128 bytes.
const ROOM: usize = 80;

/// Stops a disk if nobody has it open, in one step: nobody can open it between the question and the stop.
///
/// # Errors
/// `EBUSY` if somebody has it open; `EOPNOTSUPP` where the driver has no such command (before Linux 7.0).
pub(super) fn try_stop(number: u32) -> Result<(), Errno> {
    match run(sys::UBLK_U_CMD_TRY_STOP_DEV, number)? {
        result if result < 0 => Err(Errno::from_raw(-result)),
        _ => Ok(()),
    }
}

/// `struct ublksrv_ctrl_cmd` with nothing but the disk: the number, then the queue, which is none.
fn words(number: u32) -> [u8; ROOM] {
    let mut words = [0; ROOM];
    words[..4].copy_from_slice(&number.to_ne_bytes());
    words[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    words
}

/// Gives a command and waits for its end, on a ring of its own: they are rare.
fn run(command: u32, number: u32) -> Result<i32, Errno> {
    let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let control = OpenOptions::new().read(true).write(true).open(CONTROL_DEVICE).map_err(failed)?;
    let mut ring = IoUring::<squeue::Entry128>::builder().build(4).map_err(failed)?;
    let entry = opcode::UringCmd80::new(types::Fd(control.as_raw_fd()), command).cmd(words(number)).build();
    push(&mut ring, &entry)?;
    loop {
        match ring.submit_and_wait(1).map_err(failed) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if let Some(answer) = ring.completion().next() {
            return Ok(answer.result());
        }
    }
}

#[allow(unsafe_code)]
fn push(ring: &mut IoUring<squeue::Entry128>, entry: &squeue::Entry128) -> Result<(), Errno> {
    // SAFETY: the entry carries its command in itself and names no memory; its file is open until the answer is there.
    unsafe { ring.submission().push(entry) }.map_err(|_| Errno::EAGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_its_disk_and_no_queue() {
        let sys::ublksrv_ctrl_cmd { dev_id, queue_id, .. } =
            sys::ublksrv_ctrl_cmd { dev_id: 0x0102_0304, queue_id: u16::MAX, ..Default::default() };
        let words = words(0x0102_0304);
        assert_eq!(std::mem::offset_of!(sys::ublksrv_ctrl_cmd, dev_id), 0);
        assert_eq!(std::mem::offset_of!(sys::ublksrv_ctrl_cmd, queue_id), 4);
        assert_eq!(words[..4], dev_id.to_ne_bytes());
        assert_eq!(words[4..6], queue_id.to_ne_bytes());
        assert_eq!(words[6..], [0; ROOM - 6]);
    }
}
