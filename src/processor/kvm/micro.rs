//! `testudo micro`: loops in a small VM that each make one kind of exit, so that somebody outside can time it.
//!
//! Each loop stands between the lines `testudo-micro: NAME begin COUNT` and `testudo-micro: NAME end COUNT` on stdout,
//! COUNT being its number of exits. A loop that this KVM cannot run has the one line `testudo-micro: NAME skipped`.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::bare::{Arguments, Bare, Ended, MOST_RAM, UNTOUCHED};
use super::error::KvmError;
use super::host;
use super::vcpu::Exit;
use crate::processor::HostError;

/// A loop: RDI is its count, RSI a page-aligned address in RAM that nothing has touched.
struct Payload {
    name: &'static str,
    /// Which of the counts is its count.
    count: Count,
    /// How many exits to user space each turn makes.
    exits: u64,
    /// Where it runs.
    runs_on: RunsOn,
    code: &'static [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunsOn {
    AnyKvm,
    /// Where guests run on the hardware. KVM's instruction emulator rewrites a VMCALL into the host vendor's form and
    /// starts it over, which on a KVM that emulates everything has no end.
    Hardware,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Count {
    Exits,
    Pages,
}

/// A payload writes here when it is through.
const END_PORT: u16 = 0x10;
const PAGE: u64 = 4096;
/// Turns of the rehearsal, for each ten of the loop: caches and KVM's own tables are then as in a long run.
const REHEARSAL: u64 = 10;

#[rustfmt::skip]
const PAYLOADS: &[Payload] = &[
    Payload { name: "cpuid", count: Count::Exits, exits: 0, runs_on: RunsOn::AnyKvm, code: &[
        0x31, 0xc0,                               // again: xor  eax, eax
        0x31, 0xc9,                               //        xor  ecx, ecx
        0x0f, 0xa2,                               //        cpuid
        0x48, 0xff, 0xcf,                         //        dec  rdi
        0x75, 0xf5,                               //        jnz  again
        0xe6, 0x10,                               //        out  0x10, al
    ] },
    // KVM_HC_VAPIC_POLL_IRQ, the hypercall that does nothing
    Payload { name: "vmcall", count: Count::Exits, exits: 0, runs_on: RunsOn::Hardware, code: &[
        0xb8, 0x01, 0x00, 0x00, 0x00,             // again: mov  eax, 1
        0x0f, 0x01, 0xc1,                         //        vmcall
        0x48, 0xff, 0xcf,                         //        dec  rdi
        0x75, 0xf3,                               //        jnz  again
        0xe6, 0x10,                               //        out  0x10, al
    ] },
    Payload { name: "port_write", count: Count::Exits, exits: 1, runs_on: RunsOn::AnyKvm, code: &[
        0xe6, 0x99,                               // again: out  0x99, al
        0x48, 0xff, 0xcf,                         //        dec  rdi
        0x75, 0xf9,                               //        jnz  again
        0xe6, 0x10,                               //        out  0x10, al
    ] },
    Payload { name: "hlt", count: Count::Exits, exits: 1, runs_on: RunsOn::AnyKvm, code: &[
        0xf4,                                     // again: hlt
        0x48, 0xff, 0xcf,                         //        dec  rdi
        0x75, 0xfa,                               //        jnz  again
        0xe6, 0x10,                               //        out  0x10, al
    ] },
    Payload { name: "fresh_page", count: Count::Pages, exits: 0, runs_on: RunsOn::AnyKvm, code: &[
        0xc6, 0x06, 0x01,                         // again: mov  byte [rsi], 1
        0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, //        add  rsi, 4096
        0x48, 0xff, 0xcf,                         //        dec  rdi
        0x75, 0xf1,                               //        jnz  again
        0xe6, 0x10,                               //        out  0x10, al
    ] },
];

/// The most pages that [`micro`] can touch.
pub const MOST_PAGES: u64 = (MOST_RAM - UNTOUCHED) / PAGE * REHEARSAL / (REHEARSAL + 1) - 1;

const _: () = assert!(UNTOUCHED + (MOST_PAGES + rehearsal(MOST_PAGES)) * PAGE <= MOST_RAM);

/// Runs all loops under /dev/kvm: `exits` turns of each, and `pages` of the one that touches fresh pages.
///
/// # Errors
/// What the host refuses, and a loop that did not make the exits that it is for.
pub fn micro(exits: u64, pages: u64) -> Result<(), HostError> {
    run(exits, pages, &mut Stdout(io::stdout()))
}

fn run(exits: u64, pages: u64, lines: &mut impl Write) -> Result<(), HostError> {
    let pages = pages.clamp(1, MOST_PAGES);
    let kvm = host::open(Path::new(host::DEVICE))?;
    let mut vm = Bare::new(&kvm, UNTOUCHED + (pages + rehearsal(pages)) * PAGE)?;
    vm.use_small_pages()?;
    for payload in PAYLOADS {
        let count = match payload.count {
            Count::Exits => exits.max(1),
            Count::Pages => pages,
        };
        if payload.runs_on == RunsOn::Hardware && !host::has_virtualization() {
            line(lines, format_args!("testudo-micro: {} skipped\n", payload.name))?;
            continue;
        }
        let rehearsal = rehearsal(count);
        turn(&mut vm, payload, rehearsal, UNTOUCHED)?;
        line(lines, format_args!("testudo-micro: {} begin {count}\n", payload.name))?;
        turn(&mut vm, payload, count, UNTOUCHED + rehearsal * PAGE)?;
        line(lines, format_args!("testudo-micro: {} end {count}\n", payload.name))?;
    }
    Ok(())
}

const fn rehearsal(count: u64) -> u64 {
    count / REHEARSAL + 1
}

/// `count` turns of a loop.
fn turn(vm: &mut Bare, payload: &Payload, count: u64, fresh: u64) -> Result<(), KvmError> {
    let mut seen = 0;
    let ended = vm.run(payload.code, Arguments { rdi: count, rsi: fresh }, |exit| match exit {
        Exit::Out { port: END_PORT, .. } => ControlFlow::Break(()),
        Exit::Interrupted => ControlFlow::Continue(()),
        _ => {
            seen += 1;
            ControlFlow::Continue(())
        }
    })?;
    if (ended, seen) == (Ended::Stopped, count * payload.exits) {
        return Ok(());
    }
    let exit = format!("the {} loop ended with {ended:?} after {seen} exits of {count} turns", payload.name);
    Err(KvmError::Unexpected { exit, rip: 0 })
}

fn line(lines: &mut impl Write, text: std::fmt::Arguments<'_>) -> Result<(), HostError> {
    let written = lines.write_fmt(text).and_then(|()| lines.flush());
    written.map_err(|source| HostError::System { what: "cannot write to stdout".into(), source })
}

/// Stdout; a flush lasts until a terminal has shown all, lest showing be timed with the loop.
struct Stdout(io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        // SAFETY: a call without pointers, on a descriptor that `self.0` keeps open. What is no terminal answers
        // ENOTTY: there is nothing to wait for.
        unsafe { libc::tcdrain(self.0.as_raw_fd()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;

    use super::*;

    fn assembled(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
        let build = || {
            let mut a = CodeAssembler::new(64)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            body(&mut a)?;
            a.dec(rdi)?;
            a.jnz(again)?;
            a.out(u32::from(END_PORT), al)?;
            a.assemble(0)
        };
        build().expect("the loop can be assembled")
    }

    #[test]
    fn the_bytes_are_the_listings() {
        let listings = [
            assembled(|a| {
                a.xor(eax, eax)?;
                a.xor(ecx, ecx)?;
                a.cpuid()
            }),
            assembled(|a| {
                a.mov(eax, 1)?;
                a.vmcall()
            }),
            assembled(|a| a.out(0x99, al)),
            assembled(|a| a.hlt()),
            assembled(|a| {
                a.mov(byte_ptr(rsi), 1)?;
                a.add(rsi, PAGE as i32)
            }),
        ];
        assert_eq!(listings.len(), PAYLOADS.len());
        for (payload, listing) in PAYLOADS.iter().zip(listings) {
            assert_eq!(payload.code, listing, "{}", payload.name);
        }
    }

    #[test]
    fn each_loop_runs_between_its_two_lines() {
        if host::kvm_or_skip("each_loop_runs_between_its_two_lines").is_none() {
            return;
        }
        let mut lines = Vec::new();
        run(300, 40, &mut lines).expect("KVM runs the loops");
        let mut expected = String::new();
        for payload in PAYLOADS {
            if payload.runs_on == RunsOn::Hardware && !host::has_virtualization() {
                expected += &format!("testudo-micro: {} skipped\n", payload.name);
                continue;
            }
            let count = if payload.count == Count::Pages { 40 } else { 300 };
            for edge in ["begin", "end"] {
                expected += &format!("testudo-micro: {} {edge} {count}\n", payload.name);
            }
        }
        assert_eq!(String::from_utf8(lines).expect("text"), expected);
    }
}
