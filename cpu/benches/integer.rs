//! What an instruction costs: `cargo bench -p cpu`. Nanoseconds of wall time for each instruction retired, the best of
//! a few runs of each loop.

#[path = "../tests/guest/mod.rs"]
mod guest;

use guest::Guest;
use iced_x86::code_asm::*;
use std::time::Instant;

/// Times round each loop goes.
const TURNS: u64 = 20_000_000;
/// Runs of each loop.
const RUNS: usize = 5;

fn measure(name: &str, body: impl Fn(&mut CodeAssembler)) {
    let run = || {
        let mut guest = Guest::new();
        guest.load(|a| {
            let mut top = a.create_label();
            a.mov(rcx, TURNS).unwrap();
            a.mov(rsi, 0x30_0000u64).unwrap();
            a.set_label(&mut top).unwrap();
            body(a);
            a.dec(rcx).unwrap();
            a.jne(top).unwrap();
            a.hlt().unwrap();
        });
        let begin = Instant::now();
        let exit = guest.run(u64::MAX);
        begin.elapsed().as_nanos() as f64 / exit.retired as f64
    };
    let best = (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min);
    println!("{name:<24} {best:.3} ns an instruction");
}

fn main() {
    measure("registers", |a| {
        a.add(rax, rcx).unwrap();
        a.xor(rdx, rax).unwrap();
        a.shr(rdx, 3).unwrap();
        a.lea(rbx, qword_ptr(rdx + rax * 2)).unwrap();
    });
    measure("loads and stores", |a| {
        a.mov(rdx, qword_ptr(rsi + 8)).unwrap();
        a.add(rdx, rax).unwrap();
        a.mov(qword_ptr(rsi + 8), rdx).unwrap();
        a.add(qword_ptr(rsi + 16), 1).unwrap();
    });
    measure("pushes and pops", |a| {
        a.push(rbx).unwrap();
        a.push(rdx).unwrap();
        a.pop(rdx).unwrap();
        a.pop(rbx).unwrap();
    });
}
