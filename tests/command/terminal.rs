//! A terminal for the command to run on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};

use super::PATIENCE;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes, tcgetattr};

/// What is compared of a terminal's modes.
pub type Modes = (InputModes, OutputModes, ControlModes, LocalModes);

/// A pseudo-terminal: its keyboard and screen are the test's.
pub struct Terminal {
    outside: File,
    inside: File,
    shown: Receiver<u8>,
}

impl Terminal {
    pub fn new() -> Self {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&outside).expect("granted");
        unlockpt(&outside).expect("unlocked");
        let name = ptsname(&outside, Vec::new()).expect("its name").into_string().expect("is text");
        let inside = OpenOptions::new().read(true).write(true).open(name).expect("its other end");
        let outside = File::from(outside);
        let mut screen = outside.try_clone().expect("a descriptor");
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while screen.read_exact(&mut byte).is_ok() && sender.send(byte[0]).is_ok() {}
        });
        Self { outside, inside, shown }
    }

    pub fn modes(&self) -> Modes {
        let modes = tcgetattr(&self.inside).expect("a terminal has modes");
        (modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes)
    }

    pub fn run(&self, command: &mut Command) -> Child {
        let end = || self.inside.try_clone().expect("a descriptor");
        command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("the command can be started")
    }

    pub fn type_keys(&mut self, keys: &[u8]) {
        self.outside.write_all(keys).expect("typed");
    }

    pub fn wait_for(&self, what: &[u8]) {
        let mut seen = Vec::new();
        while !seen.ends_with(what) {
            let byte = self.shown.recv_timeout(PATIENCE);
            seen.push(byte.unwrap_or_else(|_| panic!("no more than {:?}", String::from_utf8_lossy(&seen))));
        }
    }
}
