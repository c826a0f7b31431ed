//! The life of a disk, through libublk. Everything here may block; nothing of it may be moved to another thread, as
//! libublk keeps its ring with the thread.

use std::time::Duration;

use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys};

use udrbd_units::Sector;

use super::command::try_stop;
use super::{ControlError, DEPTH, Existing, Mark, Parameters, REQUEST_BYTES, Source};
use crate::Errno;

const NAME: &str = "udrbd";
/// The folder in which the driver shows its disks, as `ublkcNUMBER`.
const DISKS: &str = "/sys/class/ublk-char";
/// How often a number that a disk just deleted may still have is asked for again, and how far apart.
const NUMBER_TRIES: u32 = 20;
const NUMBER_PAUSE: Duration = Duration::from_millis(50);

/// Lists the disks of this machine, whoever serves them. Those that may not be looked at are left out.
#[must_use]
pub fn existing() -> Vec<Existing> {
    let Ok(entries) = std::fs::read_dir(DISKS) else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("ublkc")?.parse().ok()
    });
    numbers.filter_map(look_at).collect()
}

fn look_at(number: u32) -> Option<Existing> {
    let control = UblkCtrl::new_simple(i32::try_from(number).ok()?).ok()?;
    let info = control.dev_info();
    Some(Existing {
        number,
        mark: Mark(info.ublksrv_flags),
        orphaned: u32::from(info.state) == sys::UBLK_S_DEV_QUIESCED,
        live: u32::from(info.state) == sys::UBLK_S_DEV_LIVE,
    })
}

/// Whether the driver can give a disk another size while it is started.
#[must_use]
pub fn can_resize() -> bool {
    driver_features() & u64::from(sys::UBLK_F_UPDATE_SIZE) != 0
}

/// What the driver says it can; nothing where it is too old to say (before Linux 6.5).
fn driver_features() -> u64 {
    keep_signals_away();
    UblkCtrl::get_features().unwrap_or(0)
}

/// Removes a disk that nobody serves any more. Whoever has it open gets errors.
///
/// # Errors
/// What the kernel says.
pub fn remove(number: u32) -> Result<(), ControlError> {
    let control = existing_disk(number)?;
    check("stop the disk", control.kill_dev())?;
    delete(&control)
}

/// As [`remove`], if nobody has the disk open. Where the driver cannot say so, whoever has it open gets errors.
///
/// # Errors
/// `EBUSY` if the driver says that somebody has it open, and what else the kernel says.
pub fn remove_unused(number: u32) -> Result<(), ControlError> {
    let control = existing_disk(number)?;
    stop_unused(&control)?;
    delete(&control)
}

fn existing_disk(number: u32) -> Result<UblkCtrl, ControlError> {
    keep_signals_away();
    let number = i32::try_from(number).map_err(|_| ControlError { step: "number", errno: Errno::EINVAL })?;
    UblkCtrl::new_simple(number).map_err(|error| fault("look at the disk", &error))
}

fn stop_unused(control: &UblkCtrl) -> Result<(), ControlError> {
    const STEP: &str = "stop the disk";
    if driver_features() & u64::from(sys::UBLK_F_SAFE_STOP_DEV) != 0 {
        match try_stop(control.dev_info().dev_id) {
            // Said to be there and refused: the plain command is the way.
            Err(Errno::EOPNOTSUPP) => {}
            stopped => return stopped.map_err(|errno| ControlError { step: STEP, errno }),
        }
    }
    check(STEP, control.kill_dev())
}

/// Without waiting for those who have a file of the disk open; before Linux 6.9 there is no such way.
fn delete(control: &UblkCtrl) -> Result<(), ControlError> {
    const STEP: &str = "delete the disk";
    check(STEP, control.del_dev_async()).or_else(|_| check(STEP, control.del_dev()))
}

/// A disk, for those who make and end it. Dropping it leaves the disk as it is.
pub struct Control {
    control: UblkCtrl,
    device: UblkDev,
    /// It was not there before this program.
    added: bool,
}

impl Control {
    /// Adds a disk, with this number if it is free, and sets what it looks like. It serves nothing yet.
    ///
    /// # Errors
    /// What the kernel says; `EACCES` where its character device cannot be opened.
    pub fn add(number: Option<u32>, mark: Mark, parameters: &Parameters) -> Result<Self, ControlError> {
        keep_signals_away();
        let wanted = number.and_then(|number| i32::try_from(number).ok()).unwrap_or(-1);
        let mut tries = 0;
        let control = loop {
            // In the end any number: the wanted one is somebody else's.
            let number = if tries < NUMBER_TRIES { wanted } else { -1 };
            match add(number, mark) {
                Err(error) if error.errno == Errno::EEXIST && number >= 0 => {
                    tries += 1;
                    std::thread::sleep(NUMBER_PAUSE);
                }
                added => break added?,
            }
        };
        // Whoever drops it in a crash must not take the disk away from under those who use it.
        control.disown();
        let device = open(&control, |device| device.tgt.params = wire_parameters(parameters));
        match device {
            Ok(device) => Ok(Self { control, device, added: true }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = delete(&control);
                Err(error)
            }
        }
    }

    /// Takes a disk over whose server has died. Its requests are served once [`Control::start`] returns.
    ///
    /// # Errors
    /// What the kernel says; `EBUSY` while the old server is not gone for good.
    pub fn take_over(number: u32) -> Result<Self, ControlError> {
        keep_signals_away();
        let number =
            i32::try_from(number).map_err(|_| ControlError { step: "number", errno: Errno::EINVAL })?;
        let control = UblkCtrl::new(
            Some(NAME.to_owned()),
            number,
            1,
            u32::from(DEPTH),
            REQUEST_BYTES,
            recovery_flags(),
            0,
            UblkFlags::UBLK_DEV_F_RECOVER_DEV,
        );
        let control = control.map_err(|error| fault("look at the disk", &error))?;
        let info = control.dev_info();
        if info.queue_depth != DEPTH || info.nr_hw_queues != 1 || info.max_io_buf_bytes != REQUEST_BYTES {
            // Another version made it.
            return Err(ControlError { step: "the disk's queue is of another size", errno: Errno::EINVAL });
        }
        check("take the disk over", control.start_user_recover())?;
        let device = open(&control, |_| {})?;
        Ok(Self { control, device, added: false })
    }

    /// The disk's number: its name is `/dev/ublkbNUMBER`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.control.dev_info().dev_id
    }

    /// Where the queue gets its requests from. The disk's own, so it may be asked for once.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn source(&self) -> Result<Source, ControlError> {
        let cloned = character_device(&self.device).try_clone_to_owned();
        let device = cloned
            .map_err(|error| ControlError { step: "clone the character device", errno: errno_of(&error) })?;
        let in_place = self.control.dev_info().flags & u64::from(sys::UBLK_F_AUTO_BUF_REG) != 0;
        Ok(Source { device, in_place })
    }

    /// Starts the disk. Returns when the kernel has read its partition table, through the queue.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(&self) -> Result<(), ControlError> {
        // What libublk's own queues would tell.
        self.device.notify_buffer_registration_complete(false);
        check("start the disk", self.control.start_dev(&self.device))?;
        if self.added {
            self.leave_scheduling_to_the_disk_below();
        }
        Ok(())
    }

    /// The kernel gives each disk of one queue a scheduler. DRBD's own device has none: requests are ordered once, above the
    /// disk that is slow. A new disk gets none, either; who chooses one later keeps it, also over a restart of the server.
    fn leave_scheduling_to_the_disk_below(&self) {
        // Where it may not be written, requests cost a little more; nothing else.
        let _ = std::fs::write(format!("/sys/block/ublkb{}/queue/scheduler", self.number()), "none");
    }

    /// Gives a started disk another size, also under those who have it open.
    ///
    /// # Errors
    /// `EOPNOTSUPP` before Linux 6.16, and what the kernel says.
    pub fn resize(&self, size: Sector) -> Result<(), ControlError> {
        check("resize the disk", self.control.update_size(size.bytes()))
    }

    /// Stops the disk: its requests are served, then the queue's commands come back. Whoever has it open gets errors
    /// from then on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stop(&self) -> Result<(), ControlError> {
        check("stop the disk", self.control.kill_dev())
    }

    /// As [`Control::stop`], if nobody has the disk open. Since Linux 7.0 the driver looks and stops in one step. Before, it
    /// stops whoever has it open: the caller has looked for those, and may have missed one who came since.
    ///
    /// # Errors
    /// `EBUSY` if the driver says that somebody has it open, and what else the kernel says.
    pub fn stop_unused(&self) -> Result<(), ControlError> {
        stop_unused(&self.control)
    }

    /// Deletes a stopped disk. Its number is free when nobody has any of its files open any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(self) -> Result<(), ControlError> {
        let Self { control, device, .. } = self;
        drop(device);
        delete(&control)
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ublk disk {}", self.number())
    }
}

fn recovery_flags() -> u64 {
    u64::from(sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE)
}

/// Pages of requests in the ring's table, and the way to all other data that goes with it; where the driver has both.
fn in_place_flags() -> u64 {
    const WANTED: u64 = (sys::UBLK_F_AUTO_BUF_REG | sys::UBLK_F_USER_COPY) as u64;
    if driver_features() & WANTED == WANTED { WANTED } else { 0 }
}

fn add(number: i32, mark: Mark) -> Result<UblkCtrl, ControlError> {
    UblkCtrlBuilder::default()
        .name(NAME)
        .id(number)
        .nr_queues(1)
        .depth(DEPTH)
        .io_buf_bytes(REQUEST_BYTES)
        .ctrl_flags(recovery_flags() | in_place_flags())
        .ctrl_target_flags(mark.0)
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
        .build()
        .map_err(|error| fault("add a disk", &error))
}

fn open(control: &UblkCtrl, prepare: impl FnOnce(&mut UblkDev)) -> Result<UblkDev, ControlError> {
    let prepare = |device: &mut UblkDev| {
        prepare(device);
        Ok(())
    };
    UblkDev::new(NAME.to_owned(), prepare, control)
        .map_err(|error| fault("open the character device", &error))
}

fn wire_parameters(wanted: &Parameters) -> sys::ublk_params {
    let shift = |bytes: u32| bytes.trailing_zeros() as u8;
    let mut attributes = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    if wanted.rotational {
        attributes |= sys::UBLK_ATTR_ROTATIONAL;
    }
    let zero_sectors = wanted.zero_bytes_max >> 9;
    let discards = wanted.discard_granularity_bytes > 0;
    sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            attrs: attributes,
            logical_bs_shift: shift(wanted.logical_block_bytes),
            physical_bs_shift: shift(wanted.physical_block_bytes),
            io_min_shift: shift(wanted.physical_block_bytes),
            io_opt_shift: shift(wanted.physical_block_bytes),
            max_sectors: wanted.request_bytes_max.min(REQUEST_BYTES) >> 9,
            dev_sectors: wanted.size.0,
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            // The driver wants a granularity also where only zeroes are written.
            discard_granularity: wanted.discard_granularity_bytes.max(wanted.logical_block_bytes),
            max_discard_sectors: if discards { zero_sectors } else { 0 },
            max_discard_segments: u16::from(discards),
            max_write_zeroes_sectors: zero_sectors,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// libublk takes an interrupted wait for the end of a command.
fn keep_signals_away() {
    // It cannot fail: the set is a valid one.
    let _ = nix::sys::signal::SigSet::all().thread_block();
}

/// libublk hands `EBUSY` through as a success.
fn check(step: &'static str, result: Result<i32, UblkError>) -> Result<(), ControlError> {
    match result {
        Ok(number) if number < 0 => Err(ControlError { step, errno: Errno::from_raw(-number) }),
        Ok(_) => Ok(()),
        Err(error) => Err(fault(step, &error)),
    }
}

fn fault(step: &'static str, error: &UblkError) -> ControlError {
    let errno = match error {
        UblkError::UringIOError(number) | UblkError::OtherError(number) => Errno::from_raw(number.abs()),
        UblkError::IOError(error) => errno_of(error),
        UblkError::InvalidVal => Errno::EINVAL,
        _ => Errno::EIO,
    };
    ControlError { step, errno }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

#[allow(unsafe_code)]
fn character_device(device: &UblkDev) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the first entry is the descriptor of a file that the device owns, so it is open as long as the borrow.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(device.tgt.fds[0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_discards_still_writes_zeroes() {
        let parameters = Parameters {
            size: Sector(1 << 20),
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            request_bytes_max: 1 << 20,
            discard_granularity_bytes: 0,
            zero_bytes_max: 64 << 20,
            rotational: false,
        };
        let wire = wire_parameters(&parameters);
        assert_eq!((wire.basic.logical_bs_shift, wire.basic.physical_bs_shift), (9, 12));
        assert_eq!(wire.basic.max_sectors, 256);
        assert_eq!((wire.discard.max_discard_sectors, wire.discard.max_discard_segments), (0, 0));
        assert_eq!((wire.discard.max_write_zeroes_sectors, wire.discard.discard_granularity), (131_072, 512));
    }
}
