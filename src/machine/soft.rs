//! A machine on the software processor.

use super::board::{Board, Connections};
use crate::boot::{self, BootSource, EntryState};
use crate::clock::{Clock, Idle, Source};
use crate::config::{ClockKind, Console, CpuModel, FeatureChange, Nested, RunConfig, RunError, RunOutcome};
use crate::device::frequency::Frequency;
use crate::device::{Devices, Machine, Platform};
use crate::memory::{HIGH_RAM_BASE, Memory};
use crate::processor::soft::Soft;
use crate::vcpu::model::Model;
use crate::vcpu::{Parts, Vcpu, control_register, ept01, first_state, msr, vmcs01};
use cpu::lacks;
use shadow::engine::Engine;
use shadow::ept01::Ept01;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};
use vmcs12::addr::Physical;
use vmcs12::caps::Capabilities;
use vmcs12::control::RDTSC_EXITING;
use vmcs12::field::VmcsSet;
use vmcs12::implemented;
use vmcs12::offer::{self, HostFeatures, Offer, Tweak};
use vmcs12::profile::Profile;

/// The number of the processor that boots.
const BOOT_PROCESSOR: u16 = 0;

/// The extensions whose instructions the processor refuses if they are not offered.
#[rustfmt::skip]
const EXTENSIONS: &[(&str, u64)] = &[
    ("bmi1", lacks::BMI1), ("bmi2", lacks::BMI2), ("lzcnt", lacks::LZCNT), ("popcnt", lacks::POPCNT),
    ("movbe", lacks::MOVBE), ("cmpxchg16b", lacks::CMPXCHG16B), ("sse3", lacks::SSE3), ("ssse3", lacks::SSSE3),
    ("sse4_1", lacks::SSE4_1), ("sse4_2", lacks::SSE4_2), ("aes", lacks::AES), ("pclmulqdq", lacks::PCLMULQDQ),
    ("avx", lacks::AVX), ("avx2", lacks::AVX2), ("fma", lacks::FMA), ("f16c", lacks::F16C),
    ("rdrand", lacks::RDRAND), ("rdseed", lacks::RDSEED), ("fsgsbase", lacks::FSGSBASE),
    ("xsave", lacks::XSAVE), ("xsaveopt", lacks::XSAVEOPT), ("xsavec", lacks::XSAVEC), ("xsaves", lacks::XSAVES),
    ("clflushopt", lacks::CLFLUSHOPT), ("clwb", lacks::CLWB), ("rdpid", lacks::RDPID), ("smap", lacks::SMAP),
    ("pku", lacks::PKU), ("monitor", lacks::MONITOR), ("rdtscp", lacks::RDTSCP),
    ("prefetchw", lacks::PREFETCHW),
];

/// 2020-01-01, in seconds since 1970: the date at virtual time 0, unless the clock is the host's.
const VIRTUAL_EPOCH: i64 = 1_577_836_800;

/// Runs the machine until it ends.
///
/// # Errors
/// Files that are no guest, options that name nothing, what the host refuses.
pub fn run(config: &RunConfig, console: Console) -> Result<RunOutcome, RunError> {
    if config.cpus != 1 {
        return Err(RunError::Unavailable {
            what: format!("{} virtual processors", config.cpus),
            remedy: "this version runs one on the soft processor: use --cpus 1".into(),
        });
    }
    let model = Model::new(offer(config)?);
    model.offer.require_64_bit().map_err(config_error)?;
    let memory = Memory::new(config.memory)?;
    refuse_too_much(&memory, &model)?;
    let source = BootSource {
        kernel: &config.kernel,
        initrd: config.initrd.as_ref(),
        modules: &config.modules,
        cmdline: &config.cmdline,
        processors: config.cpus,
    };
    let entry = boot::load(memory.ram(), &source)?;

    let cpuid_digest = format!("{:016x}", model.offer.digest());
    let Console { input, output, retired, stop } = console;
    let clock = clock(config, &model);
    let devices = devices(config, &model, &memory, output);
    let mut board = Board::new(clock, devices, Connections { input, retired, stop });
    let mut vcpu = vcpu(&memory, model, &entry, config.seed, &board.clock)?;
    let end = vcpu.run(&mut board)?;
    if let Err(error) = board.devices.show() {
        tracing::error!("the console cannot be written: {error}");
    }
    Ok(RunOutcome { end, counters: vcpu.counters(&board), cpuid_digest, last_exits: vcpu.last_exits() })
}

/// What L1 is offered.
fn offer(config: &RunConfig) -> Result<Offer, RunError> {
    let host = host_features();
    let model = model_of(&config.cpu);
    let (profile, mut tweaks) = model.resolve(&host);
    if config.nested == Nested::Off {
        tweaks.push(Tweak::Remove("vmx".into()));
    }
    let profile = Profile::named(profile).map_err(config_error)?;
    offer::offer(&profile, &implemented::implemented(), &host, config.cpus, &tweaks).map_err(config_error)
}

fn model_of(cpu: &CpuModel) -> offer::CpuModel {
    let tweaks = cpu.changes.iter().map(|change| match change {
        FeatureChange::Add(name) => Tweak::Add(name.clone()),
        FeatureChange::Remove(name) => Tweak::Remove(name.clone()),
    });
    offer::CpuModel { profile: cpu.profile.clone(), tweaks: tweaks.collect() }
}

/// The vector extensions that the host can execute.
fn host_features() -> HostFeatures {
    HostFeatures {
        avx: std::is_x86_feature_detected!("avx"),
        avx2: std::is_x86_feature_detected!("avx2"),
        fma: std::is_x86_feature_detected!("fma"),
        f16c: std::is_x86_feature_detected!("f16c"),
        sha: std::is_x86_feature_detected!("sha"),
    }
}

fn config_error(error: impl std::error::Error) -> RunError {
    RunError::Config(error.to_string())
}

/// RAM that the profile's physical addresses cannot name is an error.
fn refuse_too_much(memory: &Memory, model: &Model) -> Result<(), RunError> {
    let end = memory.ranges().iter().map(|range| range.end).max().unwrap_or(0);
    if end.saturating_sub(1) <= model.physical_mask() {
        return Ok(());
    }
    let (name, width) = (&model.offer.name, model.offer.physical_width());
    Err(RunError::Config(format!(
        "{name} has {width}-bit physical addresses, and guest memory reaches to {end:#x}; give less with --memory"
    )))
}

fn clock(config: &RunConfig, model: &Model) -> Clock {
    let source = match config.clock {
        ClockKind::Virtual => Source::Virtual,
        ClockKind::Host => Source::Host,
    };
    let idle = if std::io::stdin().is_terminal() { Idle::Pace } else { Idle::Jump };
    Clock::new(source, idle, model.offer.tsc_khz)
}

fn date(clock: ClockKind) -> i64 {
    match clock {
        ClockKind::Virtual => VIRTUAL_EPOCH,
        ClockKind::Host => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            i64::try_from(now).unwrap_or(i64::MAX)
        }
    }
}

fn devices(config: &RunConfig, model: &Model, memory: &Memory, console: Box<dyn Write + Send>) -> Devices {
    let (low, high): (Vec<_>, Vec<_>) =
        memory.ranges().into_iter().partition(|range| range.start < HIGH_RAM_BASE);
    let bytes = |ranges: Vec<Range<u64>>| ranges.iter().map(|range| range.end - range.start).sum();
    Devices::new(Machine {
        processors: config.cpus,
        apic_timer: Frequency::new(model.offer.crystal_hz),
        x2apic: model.offer.has("x2apic"),
        physical_width: model.offer.physical_width(),
        platform: Platform {
            memory_below_4g: bytes(low),
            memory_above_4g: bytes(high),
            date: date(config.clock),
            console,
        },
    })
}

/// The boot processor, ready to start.
pub(crate) fn vcpu(
    memory: &Memory,
    model: Model,
    entry: &EntryState,
    seed: u64,
    clock: &Clock,
) -> Result<Vcpu, RunError> {
    let machine = memory.machine();
    let mut arena = memory.arena();
    let caps = implemented::processor();
    let structures = vmcs01::Structures {
        eptp: ept01::build(&machine, &mut arena, &memory.ranges())?,
        msr_bitmap: arena.page()?,
    };
    machine.write(structures.msr_bitmap, &msr::bitmap(&model));
    let mut vmcs = vmcs01::new(BOOT_PROCESSOR, &caps, model.permitted, structures)?;
    let state = first_state::install(&mut vmcs, entry, seed);
    control_register::own(&mut vmcs, model.offer.cr4);
    vmcs.set_control(RDTSC_EXITING, clock.source() == Source::Host);

    let tables = arena.pages(arena.left())?;
    let ept01 = Ept01::new(&memory.ranges());
    let engine = Engine::new(model.offer.caps.clone(), caps.clone(), ept01, tables, &machine);
    let soft = Soft::new(machine.clone(), processor_model(&model, caps), clock);
    let vmcs01 = VmcsSet { current: Box::new(vmcs), linked: None, writers: None, shadow_accesses: (0, 0) };
    let index = usize::from(BOOT_PROCESSOR);
    Ok(Vcpu::new(Parts { index, soft, memory: machine, vmcs01, state, engine, model }))
}

fn processor_model(model: &Model, capabilities: Capabilities) -> cpu::Model {
    let missing = EXTENSIONS.iter().filter(|(name, _)| !model.offer.has(name));
    cpu::Model {
        capabilities,
        physical_width: model.offer.physical_width(),
        lacks: cpu::Lacks(missing.fold(0, |lacks, (_, bit)| lacks | bit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Image, ProcessorKind, Retired, Stop};

    fn config() -> RunConfig {
        RunConfig {
            kernel: Image { name: "kernel".into(), bytes: Vec::new().into() },
            initrd: None,
            modules: Vec::new(),
            cmdline: String::new(),
            cpus: 1,
            memory: 16 << 20,
            cpu: CpuModel { profile: offer::DEFAULT_PROFILE.into(), changes: Vec::new() },
            processor: ProcessorKind::Soft,
            nested: Nested::On,
            clock: ClockKind::Virtual,
            seed: 0,
            timeout: None,
        }
    }

    /// What a run says that cannot take place.
    fn refusal(config: &RunConfig) -> String {
        let (_, input) = crossbeam::channel::bounded(1);
        let output = Box::new(std::io::sink());
        let console = Console { input, output, retired: Retired::default(), stop: Stop::default() };
        run(config, console).expect_err("the run cannot take place").to_string()
    }

    #[test]
    fn what_cannot_be_had_is_said_by_name() {
        let profile = |name: &str| CpuModel { profile: name.into(), changes: Vec::new() };
        let change = |change| CpuModel { changes: vec![change], ..profile(offer::DEFAULT_PROFILE) };
        for (config, said) in [
            (RunConfig { cpus: 2, ..config() }, "--cpus 1"),
            (RunConfig { cpu: profile("cascade_lake"), ..config() }, "cascade_lake"),
            (RunConfig { cpu: profile("yonah"), ..config() }, "64-bit"),
            (RunConfig { cpu: change(FeatureChange::Add("avx512f".into())), ..config() }, "avx512f"),
            (RunConfig { memory: 4097, ..config() }, "4097"),
            (RunConfig { cpu: profile("conroe"), memory: 80 << 30, ..config() }, "36-bit"),
            (config(), "kernel"),
        ] {
            let refusal = refusal(&config);
            assert!(refusal.contains(said), "{refusal}");
        }
    }

    #[test]
    fn without_nesting_no_vmx_is_offered() {
        let hidden = offer(&RunConfig { nested: Nested::Off, ..config() }).unwrap();
        assert!(offer(&config()).unwrap().has("vmx") && !hidden.has("vmx"));
    }
}
