/** Network, with real clients that no image has: requests and httpx against nginx, git over ssh; and the package managers against their registries. */
import assert from "node:assert/strict";
import path from "node:path";
import test, { type TestContext } from "node:test";
import type { Language, NetworkEvent, Session } from "../../src/mod.ts";
import { observed } from "../../src/net/observe.ts";
import { noLeftovers } from "../support/leftovers.ts";
import { certificatesFor, withEnvironment } from "../support/net_services.ts";
import { missingPrograms, noSshServer, runAsService, secureNginx, sshService } from "../support/real_services.ts";
import { reasonToSkipTwice, withScheduler } from "../support/scheduler.ts";
import { wheels } from "../support/wheels.ts";

const options = (missing?: string) => {
  const skip = reasonToSkipTwice() ?? missing; // Services are tested under both, by network_services_test.ts.
  return skip === undefined ? { timeout: 600_000 } : { skip };
};

/** Puts the wheels into `lib` of the guest's home; false when there are none, and the test is skipped. */
async function withLibraries(t: TestContext, session: Session): Promise<boolean> {
  const found = wheels();
  if ("reason" in found) {
    t.skip(found.reason);
    return false;
  }
  for (const local of found.files) await session.writeFile(`wheels/${path.basename(local)}`, { local });
  await succeeds(session, "import glob, subprocess\nsubprocess.run(['unzip', '-qo', '-d', 'lib', 'wheels/*.whl'], check=True)");
  return true;
}

async function succeeds(session: Session, code: string): Promise<string> {
  const { stdout, stderr, exitCode } = await session.exec(code, { timeoutSeconds: 300 });
  assert.equal(exitCode, 0, stderr);
  return stdout;
}

test(
  "clients: requests and httpx by HTTP/1.1 and HTTP/2, each with one connection for all",
  options(missingPrograms("nginx")),
  async (t) => {
    const certificates = certificatesFor(t, ["api.example.com"]);
    withEnvironment(t, {
      SSL_CERT_FILE: certificates.authorityFile,
      NODE_EXTRA_CA_CERTS: undefined,
      HTTPS_PROXY: undefined,
      https_proxy: undefined,
    });
    const { port } = await secureNginx(t, certificates, { fileBytes: 1_000_000 });
    await withScheduler(
      async (scheduler) => {
        await using session = await scheduler.session({ language: "python", memoryMb: 512, allowedDomains: ["api.example.com"] });
        if (!await withLibraries(t, session)) return;
        const out = await succeeds(
          session,
          `import sys; sys.path.insert(0, 'lib')
import httpx, requests
with requests.Session() as client:
    for n in (1, 2, 3): print(client.get(f'https://api.example.com/{n}', timeout=30).text, end='')
    print(len(client.get('https://api.example.com/file', timeout=30).content))
for http2 in (False, True):
    with httpx.Client(http2=http2, timeout=30) as client:
        for n in (4, 5): print(client.get(f'https://api.example.com/{n}').text, end='')
        print(len(client.get('https://api.example.com/file').content))
try: requests.get('https://other.example.org/', timeout=30)
except requests.ConnectionError: print('no such host')
`,
        );
        assert.deepEqual(out.trim().split("\n"), [
          ...[1, 2, 3].map((n) => `HTTP/1.1 api.example.com /${n} ${n}`),
          "1000000",
          "HTTP/1.1 api.example.com /4 1",
          "HTTP/1.1 api.example.com /5 2",
          "1000000",
          "HTTP/2.0 api.example.com /4 1",
          "HTTP/2.0 api.example.com /5 2",
          "1000000",
          "no such host",
        ]);
      },
      {},
      { networkHosts: { "api.example.com:443": `127.0.0.1:${port}` } },
    );
  },
);

/** What git calls in place of ssh: `ssh USER@HOST COMMAND`. */
const SSH = `
import base64, os, sys, threading
sys.path.insert(0, '/home/user/lib')
import paramiko
user, host = sys.argv[1].split('@')
client = paramiko.SSHClient()
client.get_host_keys().add(host, 'ssh-ed25519', paramiko.Ed25519Key(data=base64.b64decode(os.environ['HOST_KEY'].split()[1])))
client.connect(host, 22, user, pkey=paramiko.Ed25519Key.from_private_key_file('/home/user/key'), allow_agent=False, look_for_keys=False)
channel = client.get_transport().open_session()
channel.exec_command(sys.argv[2])
def forward():
    while data := os.read(0, 65536): channel.sendall(data)
    channel.shutdown_write()
threading.Thread(target=forward, daemon=True).start()
while data := channel.recv(65536):
    while data: data = data[os.write(1, data):]
os._exit(channel.recv_exit_status())
`;

test(
  "clients: git pushes and clones over ssh through a rule with its port",
  options(noSshServer() ?? missingPrograms("git")),
  async (t) => {
    const ssh = await sshService(t);
    runAsService(ssh.directory, "git", "init", "-q", "--bare", "-b", "main", "repository.git");
    await withScheduler(
      async (scheduler) => {
        await using session = await scheduler.session({
          language: "python",
          memoryMb: 512,
          allowedDomains: ["git.example.com:22"],
          env: { HOST_KEY: ssh.hostKey },
        });
        if (!await withLibraries(t, session)) return;
        await session.writeFile("ssh.py", SSH);
        await session.writeFile("key", ssh.key, { mode: 0o600 });
        const url = `ssh://${ssh.user}@git.example.com${ssh.directory}/repository.git`;
        await succeeds(
          session,
          `import os, subprocess
os.environ.update(GIT_SSH_COMMAND='python3 /home/user/ssh.py', GIT_SSH_VARIANT='simple')
def git(*args, at='.'):
    return subprocess.run(['git', '-c', 'user.name=x', '-c', 'user.email=x@example.com', *args], cwd=at, check=True, capture_output=True, text=True).stdout
git('init', '-q', '-b', 'main', 'first')
open('first/random.bin', 'wb').write(os.urandom(300_000))
git('add', '.', at='first'); git('commit', '-qm', 'one', at='first'); git('push', '-q', ${JSON.stringify(url)}, 'main', at='first')`,
        );
        const out = await succeeds(
          session,
          `git('clone', '-q', ${JSON.stringify(url)}, 'second')
print(open('first/random.bin', 'rb').read() == open('second/random.bin', 'rb').read(), git('log', '--format=%s', at='second').strip())`,
        );
        assert.equal(out, "True one\n");
      },
      {},
      { networkHosts: { "git.example.com:22": `127.0.0.1:${ssh.port}` } },
    );
  },
);

/** Small ones, without anything that they need. */
const MANAGERS: ReadonlyArray<{ readonly name: string; readonly language: Language; readonly code: string; readonly says: string }> = [
  {
    name: "uv",
    language: "python",
    code: `import subprocess, sys
subprocess.run(['uv', 'pip', 'install', '-q', '--no-cache', '--target', 'lib', 'idna'], check=True)
sys.path.insert(0, 'lib')
import idna
print(idna.encode('bücher.example').decode())`,
    says: "xn--bcher-kva.example\n",
  },
  {
    name: "bun",
    language: "javascript",
    code:
      `const { exitCode, stderr } = Bun.spawnSync([process.execPath, "add", "--silent", "--no-cache", "is-number"], { env: { ...process.env, BUN_BE_BUN: "1" } });
if (exitCode !== 0) throw new Error(stderr.toString());
const { default: isNumber } = await import("/home/user/node_modules/is-number/index.js");
console.log(isNumber("42"), isNumber("x"));`,
    says: "true false\n",
  },
];

for (const { name, language, code, says } of MANAGERS) {
  test(`clients: ${name} installs from its registry, and needs no more than what was observed`, options(), async (t) => {
    await withScheduler(async (scheduler) => {
      const run = async (access: { allowNetwork: true } | { allowedDomains: readonly string[] }) => {
        const events: NetworkEvent[] = [], onNetworkEvent = (event: NetworkEvent) => void events.push(event);
        const result = await scheduler.run({ language, code, timeoutSeconds: 120, memoryMb: 512, onNetworkEvent, ...access });
        return { events, out: result.stdout, err: result.stderr };
      };
      const first = await run({ allowNetwork: true }), { domains } = observed(first.events);
      const asked = [...new Set(first.events.flatMap((event) => event.name ?? []))];
      if (first.out !== says && !await isReachable(asked)) return t.skip("needs a registry, and this host reaches none");
      assert.deepEqual([first.err, first.out], ["", says]);
      assert.ok(domains.length > 0);
      const listed = await run({ allowedDomains: domains });
      assert.deepEqual([listed.err, listed.out], ["", says]);
      assert.deepEqual(listed.events.filter(({ verdict }) => verdict === "refused"), []);
    });
  });
}

/** This host itself gets an answer from each of these. */
async function isReachable(names: readonly string[]): Promise<boolean> {
  const answers = names.map(async (name) => {
    const response = await fetch(`https://${name}/`, { signal: AbortSignal.timeout(20_000) });
    await response.body?.cancel();
  });
  return names.length > 0 && (await Promise.allSettled(answers)).every(({ status }) => status === "fulfilled");
}

noLeftovers();
