//! What a nested exit costs on the whole stack: `cargo bench --bench nested_exit`. The L1 is as small as can be: it takes
//! the exit, advances L2's RIP and resumes. Wall time of one L2→L1→L2 round trip, the best of a few runs, with the
//! start-up of the machine measured and taken off.

#![allow(dead_code, reason = "the payloads' phrases are those of the tests")]

#[path = "../tests/nested/code.rs"]
mod code;
#[path = "../tests/nested/image.rs"]
mod image;
#[path = "../tests/nested/l1.rs"]
mod l1;
#[path = "../tests/nested/place.rs"]
mod place;

use code::Code;
use iced_x86::code_asm::*;
use std::time::{Duration, Instant};

/// Round trips of a run.
const TURNS: u32 = 200_000;
/// Runs of each kind.
const RUNS: usize = 5;

fn run(turns: u32, exit: &dyn Fn(&mut Code)) -> Duration {
    let begin = Instant::now();
    l1::guest(
        |l1| {
            l1.store(place::SCRATCH, u64::from(turns));
            l1.enter().skip();
            let mut top = l1.label();
            l1.place(&mut top);
            l1.enter().skip();
            asm!(l1; dec(dword_ptr(place::SCRATCH as u32)); jne(top));
        },
        |l2| {
            let mut top = l2.label();
            l2.place(&mut top);
            exit(l2);
            asm!(l2; jmp(top));
        },
    );
    begin.elapsed()
}

fn measure(name: &str, exit: impl Fn(&mut Code)) {
    let round_trip = || run(TURNS, &exit).saturating_sub(run(1, &exit)).as_nanos() / u128::from(TURNS);
    let best = (0..RUNS).map(|_| round_trip()).min().expect("there are runs");
    println!("{name:<12} {best} ns a round trip");
}

fn main() {
    measure("CPUID", |l2| asm!(l2; cpuid()));
    measure("VMCALL", |l2| asm!(l2; vmcall()));
    measure("RDMSR", |l2| asm!(l2; mov(ecx, code::msr::SYSENTER_CS); rdmsr()));
}
