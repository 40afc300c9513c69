//! The integer instructions of user mode against the host's own silicon: the same bytes at the same linear
//! addresses from the same state, in 64-bit and in 32-bit compatibility mode, natively and on the software
//! processor with paging on, and every register, flag, byte and fault compared. Where AMD's processors and Intel's
//! differ, `intel.rs` lists it; what the manual leaves undefined is listed in `flags.rs`.
//!
//! `TESTUDO_SILICON_CASES` sets the cases a form (default 1000), `TESTUDO_SILICON_SEED` the seed,
//! `TESTUDO_SILICON_FORM` a part of the names of the forms to run.

mod case;
mod flags;
mod form;
#[path = "../guest/mod.rs"]
mod guest;
mod host;
mod intel;
mod layout;
mod mode;
mod ours;
mod random;
mod sequence;
mod state;

use case::{Case, random_case};
use form::{Fate, Instance, fate, instance};
use host::Host;
use iced_x86::Code;
use layout::*;
use mode::Mode;
use ours::Ours;
use random::Random;
use sequence::Block;
use state::Outcome;
use std::collections::BTreeMap;
use vmcs12::arch::event::vector;

const DEFAULT_SEED: u64 = 0x7465_7374_7564_6f21;
/// Cases for each encoding.
const CASES_EACH: usize = 10;

fn setting(name: &str, default: u64) -> u64 {
    let parse = |value: String| match value.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => value.parse().ok(),
    };
    std::env::var(name).ok().and_then(parse).unwrap_or(default)
}

struct Bench {
    host: Host,
    ours: Ours,
    /// Random bytes that the data pages start from, at any offset.
    template: Vec<u8>,
    fs_base: u64,
    /// How many cases ended in each exception; in #BP, those that ran through.
    ended: [u64; 32],
}

impl Bench {
    fn new(random: &mut Random) -> Self {
        let mut host = Host::new();
        let fs_base = host.fs_base();
        let mut ours = Ours::new(fs_base);
        let mut template = vec![0; 4 * DATA_LEN];
        random.fill(&mut template);
        host.code().fill(INT3);
        ours.write_code(CODE, &[INT3; CODE_LEN]);
        Self { host, ours, template, fs_base, ended: [0; 32] }
    }

    fn load(&mut self, at: u64, bytes: &[u8]) {
        let offset = (at - CODE) as usize;
        self.host.code()[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.ours.write_code(at, bytes);
    }

    fn unload(&mut self, at: u64, len: usize) {
        self.load(at, &vec![INT3; len]);
    }

    /// Runs code at `rip` on both from the same state; what differs, as text, and what the host did. `undefined`
    /// tells the flags that the code leaves undefined when it ends like this.
    fn compare(
        &mut self,
        mode: Mode,
        rip: u64,
        case: &Case,
        undefined: impl Fn(&Outcome) -> u64,
    ) -> (String, Outcome, u64) {
        let Case { registers, patch, data: start } = *case;
        for data in [self.host.data(), self.ours.data()] {
            data.copy_from_slice(&self.template[start..start + DATA_LEN]);
            if let Some((offset, bytes)) = patch {
                let room = bytes.len().min(DATA_LEN - offset);
                data[offset..offset + room].copy_from_slice(&bytes[..room]);
            }
        }
        let host = self.host.run(mode, &registers, rip, GS_BASE);
        let (mut ours, retired) = self.ours.run(mode, &registers, rip, GS_BASE);
        forgive(&host, &mut ours, undefined(&host));
        let mut text = state::differences(&registers, &host, &ours);
        let (theirs, mine) = (self.host.data(), self.ours.data());
        if theirs != mine {
            let at = theirs.iter().zip(mine.iter()).position(|(a, b)| a != b).unwrap_or(0);
            let end = (at + 16).min(DATA_LEN);
            let address = DATA + at as u64;
            text +=
                &format!(" [{address:#x}]: host {:02x?}, ours {:02x?};", &theirs[at..end], &mine[at..end]);
        }
        (text, host, retired)
    }

    fn compare_instance(&mut self, mode: Mode, instance: &Instance, case: &Case) -> Result<(), String> {
        let inst = &instance.inst;
        let undefined = |host: &Outcome| match host.vector {
            vector::BP if flags::is_shift(inst.mnemonic()) => {
                flags::undefined_by_count(inst, flags::count(inst, case.registers.gpr[1]))
            }
            vector::BP => flags::undefined(inst.mnemonic()),
            _ => 0,
        };
        let (mut text, host, retired) = self.compare(mode, instance.rip, case, undefined);
        let repeats = inst.has_rep_prefix() || inst.has_repne_prefix();
        if host.vector == vector::BP && !repeats && retired != 1 {
            text += &format!(" {retired} instructions retired;");
        }
        self.ended[usize::from(host.vector)] += 1;
        if text.is_empty() {
            return Ok(());
        }
        Err(format!("{:?} {:02x?} at {:#x}:{text}", inst.code(), instance.bytes, instance.rip))
    }

    fn compare_block(&mut self, mode: Mode, block: &Block, case: &Case) -> Result<(), String> {
        let undefined = |host: &Outcome| block.undefined_at(host.rip);
        let (mut text, host, retired) = self.compare(mode, block.rip(), case, undefined);
        if host.vector == vector::BP && retired != block.instances.len() as u64 {
            text += &format!(" {retired} instructions retired;");
        }
        self.ended[usize::from(host.vector)] += 1;
        if text.is_empty() {
            return Ok(());
        }
        for instance in &block.instances {
            text += &format!("\n    {:#x} {:?} {:02x?}", instance.rip, instance.inst.code(), instance.bytes);
        }
        Err(text)
    }
}

/// Takes over from the host what the manual leaves undefined.
fn forgive(host: &Outcome, ours: &mut Outcome, undefined: u64) {
    // Linux hides whether pages beyond the user's half are present.
    const USER_END: u64 = 0x7fff_ffff_f000;
    if host.vector == vector::PF && host.address >= USER_END {
        ours.error_code |= vmcs12::arch::event::page_fault::P;
    }
    ours.registers.rflags = ours.registers.rflags & !undefined | host.registers.rflags & undefined;
}

fn run_form(bench: &mut Bench, mode: Mode, code: Code, seed: u64, cases: usize) -> Result<(), String> {
    if std::env::var_os("TESTUDO_SILICON_VERBOSE").is_some() {
        eprintln!("{code:?}");
    }
    let mut random = Random(seed ^ (code as u64) << 32);
    let mut done = 0;
    while done < cases {
        let Some(instance) = instance(code, mode, &mut random, bench.fs_base) else {
            return Err(format!("{code:?}: no encoding decodes as this form"));
        };
        bench.load(instance.rip, &instance.bytes);
        for _ in 0..CASES_EACH {
            let Some(case) = random_case(&instance, mode, &bench.template, &mut random, bench.fs_base) else {
                break;
            };
            done += 1;
            let result = bench.compare_instance(mode, &instance, &case);
            if result.is_err() {
                bench.unload(instance.rip, instance.bytes.len());
                return result;
            }
        }
        bench.unload(instance.rip, instance.bytes.len());
    }
    Ok(())
}

fn run_forms(bench: &mut Bench, mode: Mode, seed: u64) -> Vec<String> {
    let cases = setting("TESTUDO_SILICON_CASES", 1000) as usize;
    let part = std::env::var("TESTUDO_SILICON_FORM").unwrap_or_default();
    let mut skipped: BTreeMap<&str, Vec<Code>> = BTreeMap::new();
    let (mut forms, mut failures) = (0, Vec::new());
    for code in Code::values().filter(|code| format!("{code:?}").contains(&part)) {
        match fate(code, mode) {
            Fate::Vector => {}
            Fate::Skip(reason) => skipped.entry(reason).or_default().push(code),
            Fate::Run => match run_form(bench, mode, code, seed, cases) {
                Ok(()) => forms += 1,
                Err(difference) => failures.push(difference),
            },
        }
    }
    println!("{mode:?}, seed {seed:#x}: {forms} forms, {cases} cases each");
    for (reason, codes) in &skipped {
        println!("skipped, {reason}: {codes:?}");
    }
    assert!(!part.is_empty() || forms + failures.len() >= mode.least_forms(), "only {forms} forms");
    failures
}

fn run_blocks(bench: &mut Bench, mode: Mode, seed: u64) -> Vec<String> {
    let blocks = 3 * setting("TESTUDO_SILICON_CASES", 1000);
    let candidates: Vec<Code> = Code::values()
        .filter(|&code| matches!(fate(code, mode), Fate::Run) && sequence::is_candidate(code))
        .collect();
    let (mut random, mut failures) = (Random(seed ^ 1), Vec::new());
    for _ in 0..blocks {
        let block = sequence::block(&candidates, mode, &mut random, bench.fs_base);
        let bytes = block.bytes();
        bench.load(block.rip(), &bytes);
        for _ in 0..CASES_EACH {
            let data = random.below(3 * DATA_LEN as u64) as usize;
            let case = Case { registers: sequence::registers(mode, &mut random), patch: None, data };
            if let Err(difference) = bench.compare_block(mode, &block, &case) {
                failures.push(difference);
                break;
            }
        }
        bench.unload(block.rip(), bytes.len());
    }
    println!(
        "{mode:?}, seed {seed:#x}: {blocks} blocks of {} forms, {CASES_EACH} cases each",
        candidates.len()
    );
    failures
}

fn report(bench: &mut Bench, failures: &[String]) {
    let ended: Vec<_> = bench.ended.iter().enumerate().filter(|&(_, &n)| n > 0).collect();
    println!("ended in the exceptions {ended:?}");
    bench.ended = [0; 32];
    for failure in failures.iter().take(200) {
        println!("{failure}");
    }
    assert!(failures.is_empty(), "{} differences", failures.len());
}

#[test]
fn every_integer_form_and_blocks_of_them_do_what_the_silicon_does() {
    let seed = setting("TESTUDO_SILICON_SEED", DEFAULT_SEED);
    let mut bench = Bench::new(&mut Random(seed));
    for mode in [Mode::Bits64, Mode::Bits32] {
        let forms = run_forms(&mut bench, mode, seed);
        report(&mut bench, &forms);
        let blocks = run_blocks(&mut bench, mode, seed);
        report(&mut bench, &blocks);
    }
}
