//! Small file systems on loop devices, for the tests that want real ones. Only with `QUORATE_LOOP` set: mounting takes
//! rights, and a file system per run takes time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    /// Those that this machine can make. Says so when one is missing.
    ///
    /// # Panics
    /// Without ext4.
    pub fn all() -> Vec<FileSystem> {
        let mut all = vec![FileSystem::Ext4];
        match run("mkfs.xfs", &["-V"]) {
            Ok(_) => all.push(FileSystem::Xfs),
            Err(what) => eprintln!("passed over XFS: {what}"),
        }
        all
    }

    /// Makes one on a device or in an image.
    pub fn make(self, on: &str) -> Result<String, String> {
        match self {
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", on]),
            // Below 300 MiB it is made for tests alone.
            FileSystem::Xfs => run("mkfs.xfs", &["-q", "-f", "--unsupported", on]),
        }
    }

    /// Options to mount an image with.
    fn options(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "loop",
            // Copies of one file system bear its name.
            FileSystem::Xfs => "loop,nouuid",
        }
    }
}

/// A mounted image; unmounted when dropped.
pub struct Mounted {
    dir: tempfile::TempDir,
    at: PathBuf,
}

/// Runs a program; what it said, or what it said when it failed.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    run_on(program, args, Stdio::null())
}

/// As [`run`], with an input.
pub fn run_on(program: &str, args: &[&str], input: Stdio) -> Result<String, String> {
    let ended = Command::new(program)
        .args(args)
        .stdin(input)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).trim().into());
    }
    Err(format!(
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&ended.stderr).trim()
    ))
}

/// Whether these tests are wanted. Says so when not.
pub fn wanted() -> bool {
    let wanted = std::env::var_os("QUORATE_LOOP").is_some();
    if !wanted {
        eprintln!("passed over: needs QUORATE_LOOP and the rights to mount");
    }
    wanted
}

impl Mounted {
    /// A new file system of so many bytes.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn new(bytes: u64, kind: FileSystem) -> Mounted {
        let dir = tempfile::tempdir().expect("dir");
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).expect("creates");
        file.set_len(bytes).expect("grows");
        kind.make(image.to_str().expect("text"))
            .expect("makes a file system");
        Mounted::image(dir, &image, kind).expect("mounts")
    }

    /// Mounts an image that is there; `dir` goes with it.
    pub fn image(
        dir: tempfile::TempDir,
        image: &Path,
        kind: FileSystem,
    ) -> Result<Mounted, String> {
        let at = dir.path().join("mounted");
        std::fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        let (image, to) = (image.to_str().expect("text"), at.to_str().expect("text"));
        run("mount", &["-o", kind.options(), image, to])?;
        Ok(Mounted { dir, at })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(what) = run("umount", &["-l", self.at.to_str().expect("text")]) {
            eprintln!("{what} (in {})", self.dir.path().display());
        }
    }
}
