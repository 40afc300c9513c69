//! Vector and floating-point instructions: each form through its thunk against the host's own execution with
//! the whole state loaded. `NATIVE_CASES` sets the cases a form (default 1000).

mod faults;
#[path = "../guest/mod.rs"]
mod guest;
mod images;
mod instructions;
mod oracle;
mod random;
mod software;
mod whole;

use cpu::native::{Feature, Features, Machine as Outside, Operand, Raised, Store, Thunks, Work};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use instructions::{candidates, encode, random_instruction};
use oracle::{Machine, Oracle, Outcome};
use random::Random;
use whole::Whole;

const SEED: u64 = 0x7465_7374;
/// Cases for each instruction, before other registers and immediates are chosen.
const CASES_EACH: usize = 25;

fn cases() -> usize {
    std::env::var("NATIVE_CASES").ok().and_then(|value| value.parse().ok()).unwrap_or(1000)
}

/// What the thunk does, with the part of the core that is between memory and the operand.
fn execute(thunks: &Thunks, work: Work, prepared: &cpu::native::Terms, machine: &mut Machine) -> bool {
    let mut operand = Operand([0xcc; 64]);
    if let Some(bytes) = prepared.memory.reads() {
        let bytes = usize::from(bytes);
        operand.0[..bytes].copy_from_slice(&machine.memory[..bytes]);
    }
    let (outcome, general) = match work {
        Work::Host(id, registers) => {
            let packed = cpu::native::Packed::new(id, registers);
            assert_eq!((packed.form(), packed.registers()), (id, registers));
            let mut general = machine.general;
            let mut outside =
                Outside { general: &mut general, rflags: &mut machine.rflags, operand: &mut operand };
            (thunks.form(id).run(registers, &mut machine.vector, &mut outside), general)
        }
        Work::Move(copy) => {
            let mut general = machine.general;
            let mut outside = cpu::native::moves::Outside { general: &mut general, operand: &mut operand };
            copy.run(&mut machine.vector, &mut outside);
            (Ok(Store::Done), general)
        }
        Work::Software(_) => unreachable!("left out by the caller"),
    };
    machine.general = general;
    if let (Ok(Store::Done), Some(bytes)) = (outcome, prepared.memory.writes()) {
        let bytes = usize::from(bytes);
        machine.memory[..bytes].copy_from_slice(&operand.0[..bytes]);
    }
    outcome == Err(Raised::SimdException)
}

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode()
}

/// Where the manual says otherwise than the host does, or we do otherwise and say so in `cpu::native`.
fn is_forgiven(code: Code, before: &Machine, expected: &mut Machine, got: &Machine) -> bool {
    const OVERFLOW_UNDERFLOW: u32 = 0b11000;
    const INEXACT: u32 = 0b100000;
    let all_masked = before.vector.mxcsr & 0x1f80 == 0x1f80;
    if code == Code::Cvtpi2ps_xmm_mmm64 {
        expected.vector.fsw = got.vector.fsw;
        expected.vector.ftw = got.vector.ftw;
        expected.vector.st = got.vector.st;
    }
    let unmasked = expected.vector.mxcsr & !(expected.vector.mxcsr >> 7);
    if unmasked & OVERFLOW_UNDERFLOW != 0 {
        expected.vector.mxcsr |= got.vector.mxcsr & INEXACT;
    }
    let is_dot_product = format!("{:?}", code.mnemonic()).to_lowercase().contains("dpp");
    is_dot_product && !all_masked
}

struct Tally {
    forms: usize,
    cases: usize,
    traps: usize,
    software: Vec<Code>,
    differences: Vec<String>,
}

fn compare_form(code: Code, thunks: &mut Thunks, oracle: &mut Oracle, tally: &mut Tally) {
    if std::env::var_os("NATIVE_VERBOSE").is_some() {
        eprintln!("{code:?}");
    }
    let mut random = Random(SEED ^ code as u64);
    let mut done = 0;
    while done < cases() {
        let Some(sample) = random_instruction(code, &mut random) else {
            let kinds = code.op_code().op_kinds();
            tally.differences.push(format!("{code:?}: no operands known for {kinds:?}"));
            return;
        };
        let bytes = encode(&sample.inst);
        let decoded = decode(&bytes);
        assert_eq!(decoded.code(), code, "{bytes:02x?}");
        let Some(prepared) = thunks.prepare(&decoded, Features::host()) else {
            tally.differences.push(format!("{code:?}: not prepared"));
            return;
        };
        if matches!(prepared.work, Work::Software(_)) {
            tally.software.push(code);
            return;
        }
        oracle.prepare(&bytes);
        for _ in 0..CASES_EACH {
            let mut expected = random.machine();
            if let Some(base) = sample.base {
                expected.general[base.number()] = oracle.operand_address();
            }
            let before = expected.clone();
            let mut got = expected.clone();
            let trapped = oracle.run(&mut expected) == Outcome::SimdException;
            let raised = execute(thunks, prepared.work, &prepared.terms, &mut got);
            let forgiven = is_forgiven(code, &before, &mut expected, &got);
            tally.traps += usize::from(trapped);
            if !forgiven && (trapped != raised || expected != got) {
                let what = format!(
                    "{code:?} {bytes:02x?}: trapped {trapped}, raised {raised}; {}",
                    difference(&before, &expected, &got)
                );
                tally.differences.push(what);
                return;
            }
        }
        done += CASES_EACH;
    }
    tally.cases += done;
    tally.forms += 1;
}

fn difference(before: &Machine, expected: &Machine, got: &Machine) -> String {
    let mut text =
        format!("mxcsr {:x} fcw {:x} fsw {:x}", before.vector.mxcsr, before.vector.fcw, before.vector.fsw);
    let (e, g) = (&expected.vector, &got.vector);
    let mut pair = |name: &str, e: String, g: String| {
        if e != g {
            text += &format!("; {name} expected {e} got {g}");
        }
    };
    pair("mxcsr", format!("{:x}", e.mxcsr), format!("{:x}", g.mxcsr));
    pair("fcw", format!("{:x}", e.fcw), format!("{:x}", g.fcw));
    pair("fsw", format!("{:x}", e.fsw), format!("{:x}", g.fsw));
    pair("ftw", format!("{:x}", e.ftw), format!("{:x}", g.ftw));
    pair("rflags", format!("{:x}", expected.rflags), format!("{:x}", got.rflags));
    pair("general", format!("{:x?}", expected.general), format!("{:x?}", got.general));
    pair("memory", format!("{:02x?}", expected.memory), format!("{:02x?}", got.memory));
    for i in 0..8 {
        pair("st", format!("{i}:{:02x?}", e.st[i]), format!("{i}:{:02x?}", g.st[i]));
    }
    for i in 0..16 {
        let was = format!("(was {:02x?})", before.vector.ymm[i]);
        pair("ymm", format!("{i}:{:02x?}{was}", e.ymm[i]), format!("{i}:{:02x?}{was}", g.ymm[i]));
    }
    text
}

#[test]
fn every_form_does_what_the_host_does() {
    let host = Features::host();
    let mut thunks = Thunks::new();
    let mut oracle = Oracle::new(host.has(Feature::Avx));
    let mut tally = Tally { forms: 0, cases: 0, traps: 0, software: Vec::new(), differences: Vec::new() };
    for code in candidates().filter(|&code| cpu::native::form::is_offered(code, host)) {
        compare_form(code, &mut thunks, &mut oracle, &mut tally);
    }
    println!(
        "{} forms, {} cases, {} SIMD exceptions; {} forms in software: {:?}",
        tally.forms,
        tally.cases,
        tally.traps,
        tally.software.len(),
        tally.software
    );
    for difference in &tally.differences {
        println!("{difference}");
    }
    assert!(tally.differences.is_empty(), "{} forms differ", tally.differences.len());
    assert!(tally.forms > 400, "only {} forms", tally.forms);
}

/// The largest distance of an operand from its aligned place.
const SHIFTS: u64 = 64;

fn compare_in_guest(code: Code, whole: &mut Whole, oracle: &mut Oracle, tally: &mut Tally) {
    if std::env::var_os("NATIVE_VERBOSE").is_some() {
        eprintln!("{code:?}");
    }
    let mut random = Random(SEED ^ code as u64);
    let mut done = 0;
    while done < cases() {
        let Some(sample) = random_instruction(code, &mut random) else {
            let kinds = code.op_code().op_kinds();
            tally.differences.push(format!("{code:?}: no operands known for {kinds:?}"));
            return;
        };
        let bytes = encode(&sample.inst);
        oracle.prepare(&bytes);
        whole.prepare(&bytes);
        for _ in 0..CASES_EACH {
            let at = if random.below(4) == 0 { random.below(SHIFTS) } else { 0 };
            let place = whole::place(random.next());
            let mut expected = random.machine();
            software::adapt(&sample, &mut expected, at as usize, &mut random);
            let mut got = expected.clone();
            if let Some(base) = sample.base {
                expected.general[base.number()] = oracle.operand_address() + at;
                got.general[base.number()] = place + at;
            }
            let before = expected.clone();
            let wanted = oracle.run(&mut expected);
            let outcome = whole.run(&mut got, place);
            if let Some(base) = sample.base {
                let moved =
                    got.general[base.number()].wrapping_sub(place).wrapping_add(oracle.operand_address());
                got.general[base.number()] = moved;
            }
            software::forgive(code, &mut expected, &mut got, at as usize);
            let forgiven = is_forgiven(code, &before, &mut expected, &got);
            tally.traps += usize::from(wanted != Outcome::Done);
            if !forgiven && (wanted != outcome || expected != got) {
                let what = format!(
                    "{code:?} {bytes:02x?} at {at}: trapped {wanted:?}, raised {outcome:?}; {}",
                    difference(&before, &expected, &got)
                );
                tally.differences.push(what);
                return;
            }
        }
        done += CASES_EACH;
    }
    tally.cases += done;
    tally.forms += 1;
}

/// Forms that user mode cannot execute on the host, or that say more of the machine than of the instruction.
fn is_testable(code: Code) -> bool {
    use iced_x86::Mnemonic;
    !matches!(
        code.mnemonic(),
        Mnemonic::Xsaves | Mnemonic::Xsaves64 | Mnemonic::Xrstors | Mnemonic::Xrstors64
    )
}

#[test]
fn every_form_does_in_a_guest_what_the_host_does() {
    let host = Features::host();
    let mut whole = Whole::new();
    let mut oracle = Oracle::new(host.has(Feature::Avx));
    let mut tally = Tally { forms: 0, cases: 0, traps: 0, software: Vec::new(), differences: Vec::new() };
    let offered = [Feature::Sha, Feature::Gfni, Feature::Vaes, Feature::Vpclmulqdq]
        .into_iter()
        .fold(host, Features::without);
    for code in candidates() {
        if is_testable(code) && cpu::native::form::is_offered(code, offered) {
            compare_in_guest(code, &mut whole, &mut oracle, &mut tally);
        }
    }
    println!("{} forms in a guest, {} cases, {} exceptions", tally.forms, tally.cases, tally.traps);
    for difference in &tally.differences {
        println!("{difference}");
    }
    assert!(tally.differences.is_empty(), "{} forms differ", tally.differences.len());
    assert!(tally.forms > 500, "only {} forms", tally.forms);
}

/// Meaningful without debug assertions: with them handlers return to the loop anyway.
#[test]
fn no_handler_grows_the_stack() {
    const COPIES: usize = 4000;
    const STACK: usize = 192 << 10;
    let copies = || {
        let mut whole = Whole::new();
        let mut random = Random(SEED);
        for code in candidates().filter(|&code| cpu::native::form::is_offered(code, Features::host())) {
            for _ in 0..4 {
                let Some(sample) = random_instruction(code, &mut random) else { continue };
                let mut machine = random.machine();
                (machine.vector.mxcsr, machine.vector.fcw, machine.vector.fsw) = (0x1f80, 0x37f, 0);
                machine.general = [whole::place(8); 16];
                if let Some(index) = sample.index {
                    machine.vector.ymm[index.number()] = [0; 32];
                }
                whole.run_copies(&encode(&sample.inst), &machine, COPIES);
            }
        }
    };
    std::thread::Builder::new().stack_size(STACK).spawn(copies).expect("a thread").join().expect("no panic");
}
