//! `drbd-overview`: one line per device, with what it is used for (status spec 8.1).

mod sources;
mod table;

use std::io::Write;

use udrbd_control::client::{Client, run_directory};
use udrbd_control::status::{NodeSnapshot, proc_drbd};

use sources::{add_names, add_uses, lines_of_program};
use table::{Overview, Style};

const NOTE: &str = "NOTE: drbd-overview will be deprecated soon.\nPlease consider using drbdmon.\n";
const EXIT_BAD_OPTION: i32 = 255;

/// Runs `drbd-overview` under the name `program` and returns its exit status.
pub fn run(program: &str, args: &[String]) -> i32 {
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(option) => {
            complain(&format!("Unknown option: {option}\nUnknown command line argument."));
            return EXIT_BAD_OPTION;
        }
    };
    complain(NOTE);
    let Some((states, node)) = read_states(program, &options) else {
        print("drbd not loaded\n");
        return 0;
    };
    let mut overview = Overview::default();
    add_names(&mut overview, &lines_of_program("drbdadm", &["sh-status"]));
    overview.add_states(&states);
    overview.name_the_nameless(&node);
    add_uses(&mut overview);
    print(&overview.text(options.style));
    0
}

/// The text of the status file, and what the daemon says; `None` if there is neither.
fn read_states(program: &str, options: &Options) -> Option<(String, NodeSnapshot)> {
    if let Some(file) = &options.status_file {
        return std::fs::read_to_string(file).ok().map(|text| (text, NodeSnapshot::default()));
    }
    let mut client = Client::connect(&run_directory(), program).ok()?;
    let node = client.snapshot(None).ok()?;
    Some((proc_drbd(&node, ""), node))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    status_file: Option<String>,
    style: Style,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            match name {
                "--proc-drbd" => {
                    options.status_file = Some(value.or_else(|| rest.next().cloned()).ok_or("proc-drbd")?);
                }
                // Errors of the programs asked never show, and these outputs have no colours.
                "--stderr-to-dev-null" | "-d" | "--color" | "--colors" | "-c" => {}
                "--flags" => options.style = Style::WithFlags,
                other => return Err(other.trim_start_matches('-').to_owned()),
            }
        }
        Ok(options)
    }
}

fn print(text: &str) {
    // A reader that is gone is no reason to fail.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_original_and_one_more() {
        let parse =
            |args: &[&str]| Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        let file = Some("x".to_owned());
        let plain = Options { status_file: file.clone(), style: Style::Plain };
        assert_eq!(parse(&["--proc-drbd=x"]), Ok(plain));
        let with_flags = Options { status_file: file, style: Style::WithFlags };
        assert_eq!(parse(&["--proc-drbd", "x", "-d", "--color=always", "--flags"]), Ok(with_flags));
        assert_eq!(parse(&["--bogus"]), Err("bogus".to_owned()));
    }
}
