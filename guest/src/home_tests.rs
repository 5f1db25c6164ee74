//! Tests of paths, and of what may be reached through them, in a directory of the machine that the tests run on.
use std::path::PathBuf;

use super::*;

/// A home that is removed when it is dropped, with a user of its own where the tests are root's.
pub struct TestHome {
    pub path: PathBuf,
    pub user: User,
}

impl TestHome {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sbx-agent-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("home")).expect("a directory");
        let user = User { ids: (rustix::process::geteuid().is_root()).then_some((1000, 1000)) };
        let home = TestHome { path, user };
        home.give(&home.home());
        home
    }

    pub fn home(&self) -> String {
        self.path.join("home").to_string_lossy().into_owned()
    }

    fn give(&self, path: &str) {
        if let Some((uid, gid)) = self.user.ids {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("given to the user");
        }
    }

    fn open(&self) -> Home {
        Home::open(&self.home(), self.user).expect("a home")
    }

    fn make(&self, name: &str) -> String {
        let path = format!("{}/{name}", self.home());
        std::fs::create_dir_all(&path).expect("a directory");
        self.give(&path);
        path
    }

    fn link(&self, name: &str, target: &str) {
        std::os::unix::fs::symlink(target, format!("{}/{name}", self.home())).expect("a link");
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn path(text: &str) -> HomePath {
    HomePath::parse("test", text).expect("a path")
}

#[test]
fn paths_are_normal_and_know_their_parts() {
    for (text, parent, name) in [
        ("a", "", "a"),
        ("a/b", "a", "b"),
        ("./a//b/", "a", "b"),
        ("a/../b", "a/..", "b"),
        ("", "", ""),
        ("./.", "", ""),
        (" /é", " ", "é"),
    ] {
        let path = path(text);
        assert_eq!((path.parent(), path.name()), (parent.as_bytes(), name.as_bytes()), "{text}");
    }
    let deep = path("a/bc/d");
    assert_eq!([0, 1, 2, 3].map(|count| deep.prefix(count)), [&b""[..], b"a", b"a/bc", b"a/bc/d"]);
    assert_eq!(path("a/link").followed(b"../b").expect("a path"), path("a/../b"));
    assert_eq!(path("link").followed(b"b/./c").expect("a path"), path("b/c"));
    assert!(path("link").followed(b"/etc").is_err());
}

#[test]
fn paths_that_are_none_are_refused() {
    let code = |text: &str| HomePath::parse("test", text).expect_err("a refusal").code;
    assert_eq!((code("/"), code("/etc/passwd"), code("a\0b")), (Code::Permission, Code::Permission, Code::BadRequest));
    assert_eq!((code(&"é".repeat(128)), code(&format!("a/{}/b", "x".repeat(256)))), (Code::Limit, Code::Limit));
    let long = format!("{}x", "a/".repeat(2_048));
    assert_eq!((long.len(), code(&long)), (4_097, Code::Limit));
    for good in [&long[..4_096], &"x".repeat(255), &format!("{}a", "é".repeat(127))] {
        assert!(HomePath::parse("test", good).is_ok(), "{} bytes", good.len());
    }
}

#[test]
fn nothing_beyond_the_home_is_reached() {
    let test = TestHome::new("beyond");
    std::fs::write(test.path.join("secret"), "s").expect("written");
    test.make("d");
    for (name, target) in [
        ("up", ".."),
        ("absolute", "/etc"),
        ("far", "d/../../secret"),
        ("inside", "/proc/self/root"),
        ("chain", "up"),
        ("d/up", "../.."),
        ("file", "../secret"),
    ] {
        test.link(name, target);
    }
    let home = test.open();
    for text in ["..", "../secret", "d/../../secret", "up", "up/secret", "absolute/passwd", "far", "inside", "chain", "d/up/secret", "file"]
    {
        for parents in [Parents::MustExist, Parents::AreMade] {
            let reached = home.try_as_user(|| home.target(&path(text), parents));
            assert_eq!(reached.err(), Some(Errno::XDEV), "{text}");
        }
    }
}

#[test]
fn links_inside_are_followed_and_loops_are_not() {
    let test = TestHome::new("links");
    test.make("d/e");
    for (name, target) in [("to-d", "d"), ("d/e/back", "../../d/e"), ("a", "b"), ("b", "a"), ("nowhere", "d/new")] {
        test.link(name, target);
    }
    let home = test.open();
    let target = |text: &str| home.try_as_user(|| home.target(&path(text), Parents::MustExist));
    for text in ["to-d/e", "d/e/back", "to-d/e/back/back", "d/../d", "to-d/..", "", "."] {
        assert!(target(text).is_ok_and(|place| place.is_directory()), "{text}");
    }
    assert_eq!(target("a").err(), Some(Errno::LOOP));
    let place = target("nowhere").expect("a place");
    assert_eq!((place.name.as_slice(), place.kind()), (&b"new"[..], None));
    let link = home.try_as_user(|| home.place(&path("to-d"), Parents::MustExist)).expect("a place");
    assert_eq!(link.kind(), Some(FileType::Symlink));
}

#[test]
fn directories_on_the_way_are_made_as_the_user_may() {
    let test = TestHome::new("parents");
    test.make("there");
    test.link("dangling", "gone");
    let home = test.open();
    let make = |text: &str| home.try_as_user(|| home.place(&path(text), Parents::AreMade).map(|_| ())).err();
    assert_eq!((make("there/a/b/c/leaf"), make("x/y/leaf"), make("leaf")), (None, None, None));
    let made = std::fs::metadata(test.path.join("home/there/a/b/c")).expect("a directory");
    assert!(made.is_dir());
    if let Some((uid, _)) = test.user.ids {
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), uid);
    }
    assert_eq!((make("dangling/x/leaf"), make("new/../leaf")), (Some(Errno::NOTDIR), Some(Errno::NOENT)));
    std::fs::write(test.path.join("home/there/file"), "").expect("written");
    assert_eq!(make("there/file/x/leaf"), Some(Errno::NOTDIR));
    // The rights of root are not ours.
    if test.user.ids.is_some() {
        std::fs::create_dir(test.path.join("home/roots")).expect("a directory");
        assert_eq!(make("roots/x/leaf"), Some(Errno::ACCESS));
    }
    assert!(rustix::process::geteuid().is_root() == test.user.ids.is_some() && make("again/leaf").is_none());
}
