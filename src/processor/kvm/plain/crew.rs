//! The threads of the vCPUs, one each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam::channel::Sender;

use super::board::Board;
use super::turn::{self, Ran};
use super::{Event, kick};
use crate::processor::kvm::error::KvmError;
use crate::processor::kvm::vcpu::Vcpu;

/// All threads.
pub(super) struct Crew {
    threads: Vec<JoinHandle<Ran>>,
    ending: Arc<AtomicBool>,
}

impl Crew {
    /// Lets the vCPUs run. The first to end sends [`Event::Ended`].
    pub(super) fn start(
        vcpus: Vec<Vcpu>,
        board: &Arc<Board>,
        events: &Sender<Event>,
    ) -> Result<Self, KvmError> {
        kick::prepare()?;
        let mut crew = Self { threads: Vec::new(), ending: Arc::default() };
        for (id, vcpu) in (0..).zip(vcpus) {
            match crew.thread(id, vcpu, board.clone(), events.clone()) {
                Ok(thread) => crew.threads.push(thread),
                Err(error) => {
                    crew.end();
                    return Err(error);
                }
            }
        }
        Ok(crew)
    }

    fn thread(
        &self,
        id: u32,
        mut vcpu: Vcpu,
        board: Arc<Board>,
        events: Sender<Event>,
    ) -> Result<JoinHandle<Ran>, KvmError> {
        let ending = self.ending.clone();
        let body = move || {
            let (end, ran) = turn::run(id, &mut vcpu, &board, &ending);
            if let Some(end) = end.transpose() {
                // Nobody receives once another vCPU has ended the machine.
                let _ = events.send(Event::Ended(end));
            }
            ran
        };
        thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(body)
            .map_err(|source| KvmError::Thread { purpose: "a vCPU", source })
    }

    /// Ends the threads; returns what they leave behind, in the order of the vCPUs.
    pub(super) fn end(&mut self) -> Vec<Ran> {
        self.ending.store(true, Ordering::Relaxed);
        self.threads.iter().for_each(kick::until_ended);
        let threads = self.threads.drain(..);
        threads.map(|thread| thread.join().expect("a vCPU's thread does not panic")).collect()
    }
}
