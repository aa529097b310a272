//! File systems of our own on loop devices, to run things on. Needs root; says why when it cannot.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system that is unmounted, and its image removed, when dropped.
pub struct Mounted {
    dir: PathBuf,
    image: Option<PathBuf>,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| "a path that is no text".into())
}

impl Mounted {
    /// `tmpfs`, or a file system that `mkfs.KIND` makes in an image of `mebibytes` in `base`. The image
    /// is written full of zeros first, so that nothing is allocated behind the file system's back.
    pub fn new(base: &Path, kind: &str, mebibytes: u64) -> Result<Mounted, String> {
        let dir = base.join(format!("mnt-{kind}"));
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let mut mounted = Mounted { dir, image: None };
        let at = text(&mounted.dir)?.to_owned();
        if kind == "tmpfs" {
            let size = format!("size={mebibytes}m");
            run("mount", &["-t", "tmpfs", "-o", &size, "none", &at])?;
            return Ok(mounted);
        }
        let image = base.join(format!("{kind}.image"));
        let name = text(&image)?.to_owned();
        let of = format!("of={name}");
        let count = format!("count={mebibytes}");
        mounted.image = Some(image);
        run(
            "dd",
            &[
                "if=/dev/zero",
                &of,
                "bs=1M",
                &count,
                "conv=fsync",
                "oflag=direct",
            ],
        )?;
        run(&format!("mkfs.{kind}"), &["-q", &name])?;
        // Freed when unmounted. With direct I/O, so that flushes and cache are those of the disk below.
        let device = run("losetup", &["--find", "--show", "--direct-io=on", &name])?;
        let device = device.trim();
        let mount = run("mount", &["-t", kind, device, &at]);
        // While it is mounted this only marks the device to go with the mount.
        let detached = run("losetup", &["--detach", device]);
        mount.and(detached)?;
        Ok(mounted)
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What cannot be undone here is left for whoever looks at the machine.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
        let _ = std::fs::remove_dir(&self.dir);
        if let Some(image) = &self.image {
            let _ = std::fs::remove_file(image);
        }
    }
}
