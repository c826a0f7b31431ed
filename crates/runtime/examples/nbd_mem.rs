//! An NBD server without replication, for trying clients and for measuring the front end alone.
//!
//! ```text
//! nbd_mem SOCKET MEBIBYTES         a disk in memory
//! nbd_mem SOCKET PATH              a file or block device
//! ```
//!
//! One thread accepts and negotiates, one thread serves every client on one ring: the shape of the daemon. The export
//! `busy` is always refused, to see how clients show a refusal. The server runs until it is killed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use udrbd_runtime::disk::{Disk, DiskOptions};
use udrbd_runtime::mailbox::{self, Receiver, Sender, mailbox};
use udrbd_runtime::nbd::{
    Export, Exports, Negotiated, Negotiation, Operation, Progress, Refusal, RefusalKind, Session,
    SessionLimits, Submission, SubmissionId,
};
use udrbd_runtime::ring::{Durability, Zeroing};
use udrbd_runtime::socket::StreamTokens;
use udrbd_runtime::{Completion, Errno, PoolOptions, Ring, RingOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the ring's completions are for.
#[derive(Clone, Copy, Debug)]
enum Token {
    Mail,
    Receive { client: u32 },
    Writable { client: u32 },
    Disk { client: u32, submission: SubmissionId },
}

/// Where the data are.
enum Storage {
    Memory(Vec<u8>),
    Disk(Disk),
}

struct Catalogue(Export);

impl Exports for Catalogue {
    fn names(&self) -> Vec<String> {
        vec![self.0.name.clone()]
    }

    fn find(&self, name: &str) -> Result<Export, Refusal> {
        match name {
            "" | "mem" => Ok(self.0.clone()),
            "busy" => {
                Err(Refusal { kind: RefusalKind::Policy, message: "busy is Secondary here".to_owned() })
            }
            _ => Err(Refusal { kind: RefusalKind::Unknown, message: format!("no export {name}") }),
        }
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(what)) = (arguments.next(), arguments.next()) else {
        return Err("usage: nbd_mem SOCKET MEBIBYTES|PATH".into());
    };
    let storage = match what.parse::<usize>() {
        Ok(mebibytes) => Storage::Memory(vec![0; mebibytes << 20]),
        Err(_) => Storage::Disk(Disk::open(Path::new(&what), DiskOptions::default())?),
    };
    let size_bytes = match &storage {
        Storage::Memory(memory) => memory.len() as u64,
        Storage::Disk(disk) => disk.properties().size.bytes(),
    };
    let catalogue = Catalogue(Export {
        name: "mem".to_owned(),
        description: "an example without replication".to_owned(),
        size_bytes,
        block_bytes: 512,
        read_only: false,
        trim: true,
        rotational: false,
    });
    let (sender, receiver) = mailbox(16)?;
    let engine = std::thread::spawn(move || {
        let outcome = serve(storage, &receiver);
        eprintln!("the serving thread ended: {outcome:?}");
        std::process::exit(1);
    });
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    for stream in listener.incoming() {
        if let Err(error) = negotiate(stream?, &catalogue, &sender) {
            eprintln!("negotiation: {error}");
        }
    }
    drop(engine);
    Ok(())
}

fn negotiate(
    mut stream: UnixStream,
    catalogue: &Catalogue,
    sender: &Sender<(OwnedFd, Negotiated)>,
) -> Result<(), Failure> {
    let mut negotiation = Negotiation::new();
    let mut bytes = [0; 4096];
    loop {
        stream.write_all(&negotiation.take_output())?;
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        let progress = negotiation.handle(&bytes[..count], catalogue);
        match progress {
            Progress::More => {}
            Progress::Ended(_) => return Ok(stream.write_all(&negotiation.take_output())?),
            Progress::Done(negotiated) => {
                stream.write_all(&negotiation.take_output())?;
                return sender.send((stream.into(), *negotiated)).map_err(|_| "too many clients".into());
            }
        }
    }
}

struct Server {
    ring: Ring<Token>,
    storage: Storage,
    clients: HashMap<u32, Session<Token>>,
    next_client: u32,
}

fn serve(storage: Storage, mail: &Receiver<(OwnedFd, Negotiated)>) -> Result<(), Errno> {
    // Both fail only without privilege, or on kernels that lack them; the example runs all the same.
    let _ = udrbd_runtime::process::use_batch_scheduling();
    let options =
        RingOptions { pool: PoolOptions { bytes: 64 << 20, lock: false }, ..RingOptions::default() };
    let mut server = Server { ring: Ring::new(options)?, storage, clients: HashMap::new(), next_client: 0 };
    mail.arm(&mut server.ring, Token::Mail);
    let mut completions = Vec::new();
    let mut submissions = Vec::new();
    loop {
        let busy = server.clients.values().any(|session| session.wants_resume(&server.ring));
        let timeout = busy.then_some(std::time::Duration::ZERO);
        completions.clear();
        server.ring.wait(timeout, &mut completions)?;
        for completion in &completions {
            server.handle(completion, mail, &mut submissions)?;
        }
        server.finish_turn(&mut submissions);
    }
}

impl Server {
    fn handle(
        &mut self,
        completion: &Completion<Token>,
        mail: &Receiver<(OwnedFd, Negotiated)>,
        submissions: &mut Vec<Submission>,
    ) -> Result<(), Errno> {
        let result = completion.result;
        match completion.token {
            Token::Mail => {
                mail.arm(&mut self.ring, Token::Mail);
                while let mailbox::Received::Message((socket, negotiated)) = mail.take() {
                    self.welcome(socket, &negotiated)?;
                }
            }
            Token::Receive { client } => {
                if let Some(session) = self.clients.get_mut(&client) {
                    session.handle_receive(&mut self.ring, result, submissions);
                    self.carry_out(client, submissions);
                }
            }
            Token::Writable { client } => {
                if let Some(session) = self.clients.get_mut(&client) {
                    session.handle_writable(&mut self.ring, result);
                }
            }
            Token::Disk { client, submission } => {
                if let Some(session) = self.clients.get_mut(&client) {
                    session.complete(&mut self.ring, submission, result.map(drop), None);
                }
            }
        }
        Ok(())
    }

    fn welcome(&mut self, socket: OwnedFd, negotiated: &Negotiated) -> Result<(), Errno> {
        let client = self.next_client;
        self.next_client += 1;
        let tokens =
            StreamTokens { receive: Token::Receive { client }, writable: Token::Writable { client } };
        let limits = SessionLimits::default();
        let session = Session::new(&mut self.ring, socket, negotiated, limits, tokens)?;
        self.clients.insert(client, session);
        Ok(())
    }

    fn finish_turn(&mut self, submissions: &mut Vec<Submission>) {
        let numbers: Vec<u32> = self.clients.keys().copied().collect();
        for client in numbers {
            let Some(session) = self.clients.get_mut(&client) else { continue };
            session.resume(&mut self.ring, submissions);
            self.carry_out(client, submissions);
            let Some(session) = self.clients.get_mut(&client) else { continue };
            session.flush(&mut self.ring);
            if session.is_finished()
                && let Some(session) = self.clients.remove(&client)
            {
                session.close(&mut self.ring);
            }
        }
    }

    fn carry_out(&mut self, client: u32, submissions: &mut Vec<Submission>) {
        for submission in submissions.drain(..) {
            let token = Token::Disk { client, submission: submission.id };
            let start = submission.range.start;
            let bytes = submission.range.bytes;
            let slice = submission.buffer.map(|buffer| buffer.slice(0, bytes));
            let ring = &mut self.ring;
            match &mut self.storage {
                Storage::Disk(disk) => {
                    let _ = match (submission.operation, slice) {
                        (Operation::Read, Some(slice)) => disk.read(ring, start, slice, token),
                        (Operation::Write { fua }, Some(slice)) => {
                            let durability = if fua { Durability::Forced } else { Durability::Cached };
                            disk.write(ring, start, slice, durability, token)
                        }
                        (Operation::Trim, _) => {
                            disk.zero(ring, start, u64::from(bytes), Zeroing::Discard, token)
                        }
                        (Operation::WriteZeroes { may_unmap }, _) => {
                            let zeroing = if may_unmap { Zeroing::MayUnmap } else { Zeroing::KeepAllocated };
                            disk.zero(ring, start, u64::from(bytes), zeroing, token)
                        }
                        _ => disk.flush(ring, token),
                    };
                }
                Storage::Memory(memory) => {
                    let first = start.bytes() as usize;
                    let range = first..first + bytes as usize;
                    match (submission.operation, slice) {
                        (Operation::Read, Some(slice)) => {
                            ring.bytes_mut(slice).copy_from_slice(&memory[range]);
                        }
                        (Operation::Write { .. }, Some(slice)) => {
                            memory[range].copy_from_slice(ring.bytes(slice));
                        }
                        (Operation::Flush, _) => {}
                        _ => memory[range].fill(0),
                    }
                    if let Some(session) = self.clients.get_mut(&client) {
                        session.complete(ring, submission.id, Ok(()), None);
                    }
                }
            }
        }
    }
}
