//! One instruction in a guest with paging on: the interpreter, its memory and `native` together.

use super::guest::{Guest, PML4};
use super::oracle::{MEMORY, Machine, Outcome};
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::event::{RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::table::*;

/// A guest that can be made to execute any instruction in any state.
pub struct Whole {
    pub guest: Guest,
    code: u64,
}

/// Code addresses are used in turn, so that no block is decoded twice in vain.
const CODE: u64 = 0x80_0000;
const CODE_END: u64 = 0xf0_0000;
/// Where copies are put, before the data.
const CODE_COPIES: u64 = 0x40_0000;
/// 2 MiB of linear addresses in which every other pair of 4-KiB pages is exchanged.
const DATA: u64 = 0x60_0000;
/// Their page table.
const TABLE: u64 = 0xc000;
/// A page in it that is not present; the page before it is.
pub const ABSENT: u64 = DATA + 0x11_0000;
/// A page that is read-only, for supervisor mode, too; the page before it is writable.
pub const READ_ONLY: u64 = DATA + 0x12_0000;

impl Whole {
    pub fn new() -> Self {
        let mut guest = Guest::new();
        guest.vmcs.current.set(EXCEPTION_BITMAP, u32::MAX);
        guest.state.xcr0 = 7;
        for page in 0..512 {
            let linear = DATA + page * 4096;
            let rights = match linear {
                ABSENT => 0,
                READ_ONLY => 0b101,
                _ => 0b111,
            };
            guest.memory.write_u64(Pa(TABLE + 8 * page), physical(linear) | rights);
        }
        guest.memory.write_u64(Pa(PML4 + 0x2000 + 8 * (DATA >> 21)), TABLE | 7);
        Self { guest, code: CODE }
    }

    /// Puts the instruction where no block has been decoded yet.
    pub fn prepare(&mut self, instruction: &[u8]) {
        self.code = if self.code + 64 > CODE_END { CODE } else { self.code + 32 };
        self.guest.memory.write(Pa(self.code), instruction);
    }

    /// Executes it with its memory at the linear address `at`.
    pub fn run(&mut self, machine: &mut Machine, at: u64) -> Outcome {
        self.write(at, &machine.memory);
        let outcome = match self.execute(machine) {
            None => Outcome::Done,
            Some(vector::XM) => Outcome::SimdException,
            Some(vector::GP) => Outcome::GeneralProtection,
            Some(other) => panic!("exception {other}"),
        };
        self.read(at, &mut machine.memory);
        outcome
    }

    /// Executes it without memory of the machine's; the vector of the exception, if there was one.
    pub fn execute(&mut self, machine: &mut Machine) -> Option<u8> {
        let guest = &mut self.guest;
        guest.state.gpr = machine.general;
        guest.state.vector = machine.vector;
        guest.vmcs.current.set(GUEST_RSP, machine.general[4]);
        guest.vmcs.current.set(GUEST_RIP, self.code);
        guest.vmcs.current.set(GUEST_RFLAGS, machine.rflags & !rflags::IF);
        let exit = guest.run(1);
        machine.rflags = guest.rflags() & !rflags::RF | machine.rflags & rflags::IF;
        let rsp = machine.general[4];
        machine.general = guest.state.gpr;
        machine.general[4] = rsp;
        machine.vector = guest.state.vector;
        match exit.cause {
            Cause::Budget => None,
            Cause::Vm(Reason::ExceptionOrNmi) => {
                let event: RecordedEvent = guest.vmcs.current.get(EXITING_EVENT_IDENTIFICATION);
                Some(event.get(RecordedEvent::VECTOR))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Executes many copies of an instruction in a row.
    pub fn run_copies(&mut self, instruction: &[u8], machine: &Machine, count: usize) {
        self.guest.memory.write(Pa(CODE_COPIES), &instruction.repeat(count));
        let guest = &mut self.guest;
        (guest.state.gpr, guest.state.vector) = (machine.general, machine.vector);
        guest.vmcs.current.set(GUEST_RIP, CODE_COPIES);
        guest.run(count as u64 + 1000);
    }

    /// Writes bytes at a linear address in [`DATA`].
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        for (i, chunk) in pieces(at, bytes.len()) {
            self.guest.memory.write(Pa(physical(at + i as u64)), &bytes[i..i + chunk]);
        }
    }

    /// Reads bytes at a linear address in [`DATA`].
    pub fn read(&self, at: u64, into: &mut [u8]) {
        for (i, chunk) in pieces(at, into.len()) {
            self.guest.memory.read(Pa(physical(at + i as u64)), &mut into[i..i + chunk]);
        }
    }
}

/// Offsets and lengths of the parts of an access that lie in one page.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = len.min(4096 - (at & 0xfff) as usize);
    [(0, first), (first, len - first)].into_iter().filter(|&(_, len)| len > 0)
}

fn physical(linear: u64) -> u64 {
    linear ^ 0x1000
}

/// A place for the machine's memory: aligned as the oracle's, and often across two pages.
pub fn place(random: u64) -> u64 {
    DATA + 0x2000 - 64 * (random % (MEMORY as u64 / 64 + 2))
}
