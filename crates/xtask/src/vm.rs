//! `cargo xtask vm`: one or two guests, a command, and its exit status as our own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use udrbd_tests::guest::{Guest, GuestOptions, KernelChoice};

/// What to boot and what to run in it.
#[derive(Args)]
#[command(
    after_help = "Scratch disks are /dev/vda, /dev/vdb and so on. With two guests (alpha 10.66.0.1, beta 10.66.0.2)\n\
                        the command runs in both at once; $(hostname) tells which it is. The guest's root is this\n\
                        machine's: everything installed or built here is there at the same path, and what the guest\n\
                        writes is gone afterwards, apart from /run/share, whose files are copied to --keep FOLDER."
)]
pub(crate) struct Options {
    /// One guest, or two joined by a virtual cable.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    guests: u8,
    /// Debian 13's own kernel, or the newest of its backports; else what UDRBD_VM_KERNEL asks for, else the first.
    #[arg(long, value_parser = KernelChoice::NAMES)]
    kernel: Option<String>,
    /// Virtual processors of each guest.
    #[arg(long, default_value_t = 2, value_name = "N")]
    smp: u32,
    /// Memory of each guest in MiB.
    #[arg(long, default_value_t = 1536, value_name = "MIB")]
    memory: u32,
    /// A scratch disk of each guest, e.g. 64M or 2G; may be repeated.
    #[arg(long, value_name = "SIZE", num_args = 1.., value_parser = parse_size)]
    disk: Vec<u64>,
    /// Count guest time in executed instructions (exact and repeatable; one processor).
    #[arg(long)]
    icount: bool,
    /// Limit of the command in seconds.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Cut the power after so many seconds of the command, power on, and run the command again.
    #[arg(long, value_name = "SECONDS")]
    power_cut_after: Option<u64>,
    /// Copy what the command left in /run/share to this folder.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<std::path::PathBuf>,
    /// The command, run by bash; several words are quoted and joined, a single one is a script.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// Boots, runs, and returns the command's exit status; with two guests the first that is not 0.
///
/// # Errors
///
/// If a guest cannot be booted or dies.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let kernel = options.kernel.as_deref().map(KernelChoice::named).transpose()?;
    let guest_options = GuestOptions {
        kernel,
        processors: options.smp,
        memory_mib: options.memory,
        disks: options.disk.clone(),
        icount: options.icount,
        ..GuestOptions::default()
    };
    let here = std::env::current_dir().context("the current folder")?;
    let command = match options.command.as_slice() {
        [script] => script.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    };
    let script = format!("cd {}\n{command}\n", quoted(&here.display().to_string()));
    let limit = Duration::from_secs(options.timeout);

    let mut guests = Vec::new();
    let mut _cable = None;
    if options.guests == 1 {
        guests.push(Guest::boot(guest_options)?);
    } else {
        let (first, second, cable) = Guest::boot_pair(&guest_options)?;
        guests.extend([first, second]);
        _cable = Some(cable);
    }
    if let Some(seconds) = options.power_cut_after {
        for guest in &mut guests {
            let _interrupted = guest.spawn(&script, limit)?;
        }
        std::thread::sleep(Duration::from_secs(seconds));
        for guest in &mut guests {
            guest.power_cut()?;
        }
        for guest in &mut guests {
            guest.power_on()?;
        }
    }
    let status = if let [guest] = guests.as_mut_slice() {
        guest.run_copied(&script, limit)?.status
    } else {
        run_in_all(&mut guests, &script, limit)?
    };
    if let Some(folder) = &options.keep {
        for guest in &guests {
            copy_share(guest, folder)?;
        }
    }
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(255)))
}

fn run_in_all(guests: &mut [Guest], script: &str, limit: Duration) -> Result<i32> {
    let mut jobs = Vec::new();
    for guest in guests.iter_mut() {
        jobs.push(guest.spawn(script, limit)?);
    }
    let mut first_failure = 0;
    for (guest, job) in guests.iter_mut().zip(jobs) {
        let output = guest.wait(job)?;
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("{}: {line}", guest.name());
        }
        if first_failure == 0 {
            first_failure = output.status;
        }
    }
    Ok(first_failure)
}

fn copy_share(guest: &Guest, folder: &std::path::Path) -> Result<()> {
    let target = folder.join(guest.name());
    std::fs::create_dir_all(&target)?;
    let status =
        std::process::Command::new("cp").arg("-a").arg(guest.share().join(".")).arg(&target).status()?;
    if !status.success() {
        bail!("cannot copy {}", guest.share().display());
    }
    Ok(())
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_usual_suffixes() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("512"), Ok(512));
        assert!(parse_size("M").is_err());
        assert!(parse_size("99999999999G").is_err());
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
