#[path = "../tests/guest/mod.rs"]
mod guest;
use guest::*;
use iced_x86::code_asm::*;
fn main() {
    let mut g = Guest::new();
    g.load(|a| {
        let mut top = a.create_label();
        a.mov(rcx, 100_000_000u64).unwrap();
        a.mov(rsi, 0x300000u64).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.mov(rdx, qword_ptr(rsi + 8)).unwrap();
        a.xor(rdx, rax).unwrap();
        a.mov(qword_ptr(rsi + 8), rdx).unwrap();
        a.shr(rdx, 3).unwrap();
        a.lea(rbx, qword_ptr(rdx + rax * 2)).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let t = std::time::Instant::now();
    let e = g.run(u64::MAX);
    let d = t.elapsed();
    println!("{:?} {:.3} ns/insn", e, d.as_nanos() as f64 / e.retired as f64);
    let mut g = Guest::new();
    g.load(|a| {
        let mut top = a.create_label();
        let mut f = a.create_label();
        a.mov(rcx, 100_000_000u64).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(f).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut f).unwrap();
        a.push(rbx).unwrap();
        a.test(rcx, rcx).unwrap();
        a.pop(rbx).unwrap();
        a.ret().unwrap();
    });
    let t = std::time::Instant::now();
    let e = g.run(u64::MAX);
    let d = t.elapsed();
    println!("{:?} {:.3} ns/insn", e, d.as_nanos() as f64 / e.retired as f64);
}
