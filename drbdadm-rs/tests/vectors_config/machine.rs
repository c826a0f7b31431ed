//! A machine for `drbdadm` to run on: files of a case, invented helpers, everything else from the vector.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;

use drbdadm_rs::drbdadm::disk_files::{DiskFiles, matches_pattern};
use drbdadm_rs::drbdadm::system::{Call, Ended, Finished, Helper, Registered, Stream, System, WaitDialog};
use udrbd_config::{Address, Files};

use super::Vector;

/// Where the configuration is unless said otherwise.
const DEFAULT_FILE: &str = "/etc/drbd.conf";

/// A line of the table that says what helpers answer.
struct Answer {
    pattern: String,
    status: i32,
    output: Vec<u8>,
    errors: Vec<u8>,
}

/// The case's folder as working directory, and its `etc` as `/etc`. Without that there is a configuration at
/// the default place that holds nothing, as distributions install it.
struct CaseFiles {
    etc: Option<String>,
}

impl CaseFiles {
    /// Where a path really is; `None` if the machine has no such place.
    fn real(&self, path: &str) -> Option<String> {
        match path.strip_prefix("/etc") {
            None => Some(path.to_owned()),
            Some(rest) if rest.is_empty() || rest.starts_with("/drbd.") => {
                Some(format!("{}{rest}", self.etc.as_ref()?))
            }
            Some(_) => None,
        }
    }

    /// The name the machine has for a real place.
    fn shown(&self, path: &str) -> String {
        match self.etc.as_ref().and_then(|etc| path.strip_prefix(etc.as_str())) {
            Some(rest) => format!("/etc{rest}"),
            None => path.to_owned(),
        }
    }

    fn places(&self, directory: &str, path: &str) -> io::Result<(String, String)> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let directory = self.real(directory).ok_or_else(missing)?;
        let path = if path.starts_with('/') { self.real(path).ok_or_else(missing)? } else { path.to_owned() };
        Ok((directory, path))
    }
}

impl Files for CaseFiles {
    fn glob(&self, directory: &str, pattern: &str) -> io::Result<Vec<String>> {
        let (directory, pattern) = self.places(directory, pattern)?;
        let found = DiskFiles.glob(&directory, &pattern)?;
        Ok(found.iter().map(|path| self.shown(path)).collect())
    }

    fn read(&self, directory: &str, path: &str) -> io::Result<Vec<u8>> {
        if self.etc.is_none() && path == DEFAULT_FILE {
            return Ok(Vec::new());
        }
        let (directory, path) = self.places(directory, path)?;
        DiskFiles.read(&directory, &path)
    }

    fn real_path(&self, directory: &str, path: &str) -> Option<String> {
        let (directory, path) = self.places(directory, path).ok()?;
        DiskFiles.real_path(&directory, &path)
    }

    fn absolute_path(&self, directory: &str, path: &str) -> io::Result<String> {
        if path == DEFAULT_FILE {
            return Ok(path.to_owned());
        }
        let (directory, path) = self.places(directory, path)?;
        Ok(self.shown(&DiskFiles.absolute_path(&directory, &path)?))
    }
}

/// The machine.
pub(crate) struct Machine {
    directory: String,
    files: CaseFiles,
    node_name: String,
    addresses: Vec<String>,
    variables: BTreeMap<String, String>,
    has_terminal: bool,
    input: Vec<u8>,
    answers: Option<Vec<Answer>>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) calls: Vec<u8>,
}

impl Machine {
    pub(crate) fn new(directory: &str, vector: &Vector) -> Self {
        let mut addresses = vector.addrs.clone();
        addresses.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
        let path = |name: &str| format!("{directory}/{name}");
        Self {
            directory: directory.to_owned(),
            files: CaseFiles { etc: vector.etc.as_deref().map(path) },
            node_name: vector.hostname.clone(),
            addresses,
            variables: vector.env.clone().unwrap_or_default(),
            has_terminal: vector.tty,
            input: vector.stdin.as_deref().map(|name| fs::read(path(name)).unwrap()).unwrap_or_default(),
            answers: vector.fakes.as_deref().map(|name| read_answers(directory, &path(name))),
            stdout: Vec::new(),
            stderr: Vec::new(),
            calls: Vec::new(),
        }
    }

    fn answer(&mut self, call: &Call) -> Finished {
        let line = call.words.join(" ");
        let Some(answers) = &self.answers else {
            return Finished {
                ended: Ended::Status(20),
                output: Vec::new(),
                errors: b"Can not exec\n".to_vec(),
            };
        };
        self.calls.extend(format!("{line}\n").into_bytes());
        let answer = answers.iter().find(|answer| matches_pattern(&answer.pattern, &line));
        answer.map_or(
            Finished { ended: Ended::Status(0), output: Vec::new(), errors: Vec::new() },
            |answer| Finished {
                ended: Ended::Status(answer.status),
                output: answer.output.clone(),
                errors: answer.errors.clone(),
            },
        )
    }

    /// Handlers are run for real, by a shell with nothing but the machine's variables.
    fn shell(&self, call: &Call) -> Finished {
        let output = Command::new("/bin/sh")
            .args(&call.words[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .envs(&self.variables)
            .current_dir(&self.directory)
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        let ended = match (output.status.code(), signal) {
            (Some(status), _) => Ended::Status(status),
            (None, signal) => Ended::Signal(signal.unwrap_or(0)),
        };
        Finished { ended, output: output.stdout, errors: output.stderr }
    }
}

fn read_answers(directory: &str, table: &str) -> Vec<Answer> {
    let text = fs::read_to_string(table).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split('\t').filter(|field| !field.is_empty());
            let pattern = fields.next().unwrap().to_owned();
            let status = fields.next().unwrap().parse().unwrap();
            let mut field = || fields.next().filter(|field| *field != "-").unwrap_or("").to_owned();
            let (file, errors) = (field(), field());
            let output =
                if file.is_empty() { Vec::new() } else { fs::read(format!("{directory}/{file}")).unwrap() };
            let errors = errors.replace("\\n", "\n").replace("\\t", "\t").into_bytes();
            Answer { pattern, status, output, errors }
        })
        .collect()
}

impl System for Machine {
    fn node_name(&self) -> String {
        self.node_name.clone()
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    fn has_address(&self, address: &Address) -> bool {
        let text = address.address.split('%').next().unwrap();
        match address.family.as_str() {
            "ipv4" | "ipv6" => {
                let wanted: Option<std::net::IpAddr> = text.parse().ok();
                self.addresses.iter().any(|own| wanted.is_some() && own.parse().ok() == wanted)
            }
            _ => true,
        }
    }

    fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    fn directory(&self) -> String {
        self.directory.clone()
    }

    fn files(&self) -> &dyn Files {
        &self.files
    }

    fn read_input(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.input.clone())
    }

    fn is_executable(&self, _path: &str) -> bool {
        false
    }

    fn print(&mut self, bytes: &[u8]) {
        self.stdout.extend_from_slice(bytes);
    }

    fn complain(&mut self, bytes: &[u8]) {
        self.stderr.extend_from_slice(bytes);
    }

    fn run(&mut self, call: &Call) -> Finished {
        let mut finished = if call.helper == Helper::Shell { self.shell(call) } else { self.answer(call) };
        let streams = [
            (call.output, &mut finished.output, &mut self.stdout),
            (call.errors, &mut finished.errors, &mut self.stderr),
        ];
        for (stream, bytes, ours) in streams {
            match stream {
                Stream::Inherited => ours.append(bytes),
                Stream::Dropped => bytes.clear(),
                Stream::Captured => {}
            }
        }
        finished
    }

    fn wait_for_all(&mut self, calls: &[Call], _dialog: &WaitDialog) {
        for call in calls {
            self.run(call);
        }
    }

    fn registered(&mut self, _key: &Registered<'_>) -> Option<String> {
        None
    }

    fn register(&mut self, _key: &Registered<'_>, _file: &str) {}

    fn pause(&mut self) {}

    fn start_daemon(&mut self, _call: &Call, _may_start: bool) -> Result<(), String> {
        Ok(())
    }
}
