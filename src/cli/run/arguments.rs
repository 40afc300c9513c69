//! The options of `testudo run`, and the run that they describe.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::value;
use crate::config::{ClockKind, CpuModel, Image, Module, Nested, ProcessorKind, RunConfig, RunError, Stop};
use crate::guest::initramfs::{Micro, Recipe};
use crate::guest::parts::{self, Fetch, Source};
use crate::guest::{self, GuestError, cache};
use crate::status;

/// Turns of each loop of `--micro`.
pub const MICRO_EXITS: u64 = 20_000;
/// Turns of the one that touches fresh pages: 16 MiB.
pub const MICRO_PAGES: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  testudo run                                          the ready-made guest: Linux, KVM, Linux
  testudo run --cpu haswell --stats stats.json         on another processor, with figures
  testudo run --micro --stats -                        time the nested exits, too
  testudo run --kernel bzImage --initrd rootfs.cpio --cmdline 'console=ttyS0'
  testudo run --kernel vmx.flat --timeout 5m           a multiboot test kernel
";

fn help_tail() -> String {
    let statuses = status::MEANINGS.iter().map(|(status, meaning)| format!("  {status:<6} {meaning}\n"));
    format!("{EXAMPLES}\nExit status:\n{}", statuses.collect::<String>())
}

/// Options of `testudo run`.
#[derive(Args, Debug)]
#[command(after_long_help = help_tail(), after_help = EXAMPLES)]
pub struct Arguments {
    /// Kernel: bzImage, ELF with a PVH note, or multiboot 1 [default: the ready-made guest]
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "Guest")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", help_heading = "Guest")]
    cmdline: Option<String>,
    /// Multiboot module with its arguments; may be repeated
    #[arg(long = "module", value_name = "FILE[ ARGS]", requires = "kernel", help_heading = "Guest")]
    multiboot_modules: Vec<String>,

    /// Make the ready-made guest from --kernel and the modules below this directory, as /lib/modules/VERSION
    #[arg(
        long,
        value_name = "DIR",
        requires = "kernel",
        conflicts_with = "initrd",
        help_heading = "Ready-made guest"
    )]
    modules: Option<PathBuf>,
    /// Static busybox for --modules [default: the host's]
    #[arg(long, value_name = "FILE", requires = "modules", help_heading = "Ready-made guest")]
    busybox: Option<PathBuf>,
    /// When to ask Debian for the kernel: if it is not in the cache, never, or now for the newest
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = When::Missing, conflicts_with = "kernel", help_heading = "Ready-made guest")]
    fetch: When,
    /// Time nested exits in L2 before its Linux boots: loops of N exits each
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20000", help_heading = "Ready-made guest")]
    micro: Option<u64>,
    /// L2's memory
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size_text, help_heading = "Ready-made guest")]
    l2_memory: String,
    /// L2's kernel command line
    #[arg(long, value_name = "TEXT", help_heading = "Ready-made guest")]
    l2_cmdline: Option<String>,
    /// Show the messages of both kernels
    #[arg(long, help_heading = "Ready-made guest")]
    verbose_guest: bool,

    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), help_heading = "Machine")]
    cpus: u32,
    /// Memory
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = value::memory, help_heading = "Machine")]
    memory: u64,
    /// The processor that the guest sees
    #[arg(long, value_name = "PROFILE[,+FEATURE,-FEATURE]", default_value = "cascade_lake_sp", value_parser = value::cpu, help_heading = "Machine")]
    cpu: CpuModel,
    /// What executes the guest
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Which::Soft, help_heading = "Machine")]
    processor: Which,
    /// Whether the guest is offered VMX
    #[arg(long, value_enum, value_name = "SWITCH", default_value_t = Switch::On, help_heading = "Machine")]
    nested: Switch,
    /// What guest time follows: the count of instructions (each run is the same), or real time
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Time::Virtual, help_heading = "Machine")]
    clock: Time,
    /// Where RDRAND and RDSEED begin
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Machine")]
    seed: u64,

    /// Write statistics as JSON; - is stdout
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub(super) stats: Option<PathBuf>,
    /// End the run after this time, as 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = value::duration, help_heading = "Run")]
    timeout: Option<Duration>,
    /// Print this milestone before the guest starts
    #[arg(long, value_name = "NAME", hide = true)]
    pub(super) announce: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum When {
    Missing,
    Never,
    Now,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Which {
    /// The software processor, on any x86-64 host
    Soft,
    /// The host's /dev/kvm; so far with --nested off only
    Kvm,
    /// The kernel's own nested VMX; not available yet
    KvmNested,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Time {
    Virtual,
    Host,
}

/// Which guest a run has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guest {
    /// The one with milestones of its own.
    ReadyMade,
    /// The user's.
    Own,
}

/// A run with its files read.
#[derive(Debug)]
pub struct Prepared {
    /// What to run.
    pub config: RunConfig,
    /// Whose guest it is.
    pub guest: Guest,
    /// Where it is from.
    pub origin: String,
}

impl Arguments {
    /// Checks what does not need the files.
    ///
    /// # Errors
    /// What does not go together, or is not available.
    pub fn check(&self) -> Result<(), RunError> {
        let unavailable = |what: &str, remedy: &str| {
            Err(RunError::Unavailable { what: what.into(), remedy: remedy.into() })
        };
        match (self.processor, self.nested) {
            (Which::KvmNested, _) => {
                unavailable("--processor kvm-nested is not available in this version", "use --processor soft")
            }
            (Which::Kvm, Switch::On) => unavailable(
                "--processor kvm offers its guest no VMX in this version",
                "use --processor soft, or --nested off for a guest that is no hypervisor",
            ),
            (Which::Kvm | Which::Soft, Switch::Off) if self.guest() == Guest::ReadyMade => unavailable(
                "the ready-made guest is a hypervisor and needs VMX",
                "use --nested on, or --kernel for another guest",
            ),
            (Which::Kvm, Switch::Off) | (Which::Soft, _)
                if self.guest() == Guest::Own && self.micro.is_some() =>
            {
                Err(RunError::Config("--micro is for the ready-made guest".into()))
            }
            (Which::Kvm, Switch::Off) | (Which::Soft, _) => Ok(()),
        }
    }

    fn guest(&self) -> Guest {
        if self.kernel.is_none() || self.modules.is_some() { Guest::ReadyMade } else { Guest::Own }
    }

    /// Reads or makes the guest's files.
    ///
    /// # Errors
    /// What is missing or cannot be read.
    pub fn prepare(&self, stop: &Stop) -> Result<Prepared, GuestError> {
        match (&self.kernel, &self.modules) {
            (Some(kernel), None) => self.own(kernel),
            (Some(kernel), Some(modules)) => self.ready_made(
                &Source::Files {
                    kernel: kernel.clone(),
                    modules: modules.clone(),
                    busybox: self.busybox.clone(),
                },
                stop,
            ),
            (None, _) => {
                let fetch = self.fetch.into();
                self.ready_made(&Source::Debian { cache: cache::directory()?, fetch }, stop)
            }
        }
    }

    fn own(&self, kernel: &std::path::Path) -> Result<Prepared, GuestError> {
        let modules = self.multiboot_modules.iter().map(|module| {
            let path = module.split(' ').next().unwrap_or_default();
            Ok(Module { image: parts::image(path.as_ref())?, string: module.clone() })
        });
        let kernel = parts::image(kernel)?;
        Ok(Prepared {
            guest: Guest::Own,
            origin: kernel.name.clone(),
            config: RunConfig {
                initrd: self.initrd.as_deref().map(parts::image).transpose()?,
                modules: modules.collect::<Result<_, GuestError>>()?,
                cmdline: self.cmdline.clone().unwrap_or_default(),
                ..self.machine(kernel)
            },
        })
    }

    fn ready_made(&self, source: &Source, stop: &Stop) -> Result<Prepared, GuestError> {
        let cmdline = if self.verbose_guest { guest::CMDLINE_VERBOSE } else { guest::CMDLINE };
        let or_default = |given: &Option<String>| given.clone().unwrap_or_else(|| cmdline.to_owned());
        let recipe = Recipe {
            micro: self.micro.map(|exits| Micro { exits, pages: MICRO_PAGES }),
            l2_memory: self.l2_memory.clone(),
            l2_cmdline: or_default(&self.l2_cmdline),
        };
        let made = guest::ready_made(source, &recipe, stop)?;
        Ok(Prepared {
            guest: Guest::ReadyMade,
            origin: made.origin,
            config: RunConfig {
                initrd: Some(made.initrd),
                cmdline: or_default(&self.cmdline),
                ..self.machine(made.kernel)
            },
        })
    }

    /// The machine, with nothing but a kernel in it.
    fn machine(&self, kernel: Image) -> RunConfig {
        RunConfig {
            kernel,
            initrd: None,
            modules: Vec::new(),
            cmdline: String::new(),
            cpus: self.cpus,
            memory: self.memory,
            cpu: self.cpu.clone(),
            processor: self.processor.into(),
            nested: self.nested.into(),
            clock: self.clock.into(),
            seed: self.seed,
            timeout: self.timeout,
        }
    }
}

fn size_text(text: &str) -> Result<String, String> {
    value::memory(text).map(|_| text.to_owned())
}

impl From<When> for Fetch {
    fn from(when: When) -> Self {
        match when {
            When::Missing => Self::IfMissing,
            When::Never => Self::Never,
            When::Now => Self::Now,
        }
    }
}

impl From<Which> for ProcessorKind {
    fn from(which: Which) -> Self {
        match which {
            Which::Soft => Self::Soft,
            Which::Kvm => Self::Kvm,
            Which::KvmNested => Self::KvmNested,
        }
    }
}

impl From<Switch> for Nested {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::On => Self::On,
            Switch::Off => Self::Off,
        }
    }
}

impl From<Time> for ClockKind {
    fn from(time: Time) -> Self {
        match time {
            Time::Virtual => Self::Virtual,
            Time::Host => Self::Host,
        }
    }
}
