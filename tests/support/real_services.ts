/** Real services: nginx, PostgreSQL and OpenSSH as they are installed on this host, each on loopback, in a directory and under a user of its own. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import net, { type AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import type { TestContext } from "node:test";
import { temporaryDirectory } from "./leftovers.ts";
import type { Certificates } from "./net_services.ts";
import { eventually } from "./waiting.ts";

const SYSTEM_DIRECTORIES = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/** Where a program is; undefined where it is not installed. */
export function programPath(name: string): string | undefined {
  const directories = [...(process.env["PATH"] ?? "").split(":"), ...SYSTEM_DIRECTORIES, ...postgresDirectories()];
  return directories.map((directory) => path.join(directory, name)).find((file) => existsSync(file));
}

/** Why a test that needs these programs cannot run; undefined when it can. */
export function missingPrograms(...names: readonly string[]): string | undefined {
  const missing = names.filter((name) => programPath(name) === undefined);
  return missing.length === 0 ? undefined : `needs ${missing.join(" and ")}, which is not installed`;
}

/** A server that runs until the test ends. */
export interface RealService {
  readonly port: number;
  readonly directory: string;
}

/** nginx with `servers` inside its `http` block, in which `PORT` stands for its port. */
export async function nginxService(t: TestContext, servers: string): Promise<RealService> {
  return await serviceOf(t, (port, directory) => {
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${directory}/${name};`);
    const http = ["access_log off;", ...temporary, servers.replaceAll("PORT", String(port))].join("\n");
    const configuration = `daemon off; worker_processes 1; error_log stderr; pid ${directory}/pid;\nevents {}\nhttp {\n${http}\n}\n`;
    writeFileSync(path.join(directory, "nginx.conf"), configuration);
    return ["nginx", "-p", directory, "-e", "stderr", "-c", path.join(directory, "nginx.conf")];
  });
}

/** nginx over TLS, with HTTP/1.1 and HTTP/2: says which of them a request came by, and for which host; `/file` is `file` bytes of zeros. */
export async function secureNginx(
  t: TestContext,
  certificates: Certificates,
  options: { readonly fileBytes: number },
): Promise<RealService> {
  const files = temporaryDirectory(t);
  chmodSync(files, 0o755);
  writeFileSync(path.join(files, "cert.pem"), certificates.cert);
  writeFileSync(path.join(files, "key.pem"), certificates.key);
  writeFileSync(path.join(files, "file"), new Uint8Array(options.fileBytes));
  return await nginxService(
    t,
    `server {
  listen 127.0.0.1:PORT ssl http2;
  ssl_certificate ${files}/cert.pem;
  ssl_certificate_key ${files}/key.pem;
  keepalive_requests 10000;
  default_type text/plain;
  location / { return 200 "$server_protocol $host $uri $connection_requests\\n"; }
  location = /file { root ${files}; }
}`,
  );
}

/** PostgreSQL that trusts everybody, with the user `sbx` and a database of that name. */
export async function postgresService(t: TestContext): Promise<RealService> {
  return await serviceOf(t, (port, directory, asUser) => {
    const data = path.join(directory, "data"),
      [program = "", ...args] = [
        ...asUser,
        programPath("initdb") ?? "initdb",
        "--pgdata",
        data,
        "--username=sbx",
        "--auth=trust",
        "--no-sync",
        "--encoding=UTF8",
        "--locale=C",
      ];
    if (!existsSync(data)) execFileSync(program, args, { cwd: directory, stdio: ["ignore", "ignore", "pipe"] });
    const settings = [`port=${port}`, "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=10"];
    return ["postgres", "-D", data, ...settings.flatMap((setting) => ["-c", setting])];
  });
}

/** A server of ssh that takes one key, and what a client needs to know. */
export interface SshService extends RealService {
  readonly user: string;
  /** The client's key, as OpenSSH writes it. */
  readonly key: string;
  /** The server's public key: type and Base64. */
  readonly hostKey: string;
}

/** Why there can be no server of ssh; undefined when there can: whoever logs in needs a shell, and servers do not run as root. */
export function noSshServer(): string | undefined {
  return missingPrograms("sshd", "ssh-keygen") ?? (accountOf().hasShell ? undefined : "needs an account that is not root and has a shell");
}

/** OpenSSH's server, for the user that it runs as. */
export async function sshService(t: TestContext): Promise<SshService> {
  const keys = temporaryDirectory(t), at = (name: string) => path.join(keys, name);
  const keygen = programPath("ssh-keygen") ?? "ssh-keygen";
  for (const name of ["host", "client"]) execFileSync(keygen, ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", at(name)]);
  const text = (name: string) => readFileSync(at(name), "utf8");
  const service = await serviceOf(t, (port, directory) => {
    const own = (name: string, content: string, mode: number) => {
      writeFileSync(path.join(directory, name), content, { mode });
      if (process.getuid?.() === 0) chownSync(path.join(directory, name), accountOf().uid, accountOf().gid);
    };
    own("host", text("host"), 0o600);
    own("authorized", text("client.pub"), 0o600);
    const lines = [
      `Port ${port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${directory}/host`,
      `AuthorizedKeysFile ${directory}/authorized`,
      `PidFile ${directory}/pid`,
      "StrictModes no",
      "UsePAM no",
      "PasswordAuthentication no",
      "LogLevel ERROR",
    ];
    own("sshd.conf", `${lines.join("\n")}\n`, 0o600);
    return ["sshd", "-D", "-e", "-f", path.join(directory, "sshd.conf")];
  });
  const [type = "", base64 = ""] = text("host.pub").split(" ");
  return { ...service, user: accountOf().name, key: text("client"), hostKey: `${type} ${base64}`.trim() };
}

/** Runs a program in `directory`, as the account that services have. */
export function runAsService(directory: string, program: string, ...args: readonly string[]): void {
  const [first = "", ...rest] = [...asService(), program, ...args];
  execFileSync(first, rest, { cwd: directory, stdio: ["ignore", "ignore", "inherit"], env: { ...process.env, HOME: directory } });
}

/** Starts what `prepare` says, on a free port; somebody else may take it first, so there is a second try. */
async function serviceOf(
  t: TestContext,
  prepare: (port: number, directory: string, asUser: readonly string[]) => readonly string[],
): Promise<RealService> {
  const directory = path.join(temporaryDirectory(t), "service");
  mkdirSync(directory, { mode: 0o700 });
  chmodSync(path.dirname(directory), 0o755);
  if (process.getuid?.() === 0) chownSync(directory, accountOf().uid, accountOf().gid);
  for (let attempt = 1;; attempt += 1) {
    const port = await freePort(), [name = "", ...args] = prepare(port, directory, asService());
    const [program = "", ...rest] = [...asService(), programPath(name) ?? name, ...args];
    const child = spawn(program, rest, { cwd: directory, stdio: ["ignore", "ignore", "pipe"] });
    const says: string[] = [];
    child.stderr?.setEncoding("utf8").on("data", (chunk: string) => says.push(chunk));
    const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
    t.after(() => stop(child, ended));
    let isOver = false;
    void ended.then(() => isOver = true);
    await eventually(`${name} listens`, async () => isOver || await isListening(port));
    if (!isOver) return { port, directory };
    if (attempt === 2) throw new Error(`${name} ended: ${says.join("").slice(-2_000)}`);
  }
}

/** Fast, and with all of its own processes. */
async function stop(child: ChildProcess, ended: Promise<void>): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) child.kill("SIGINT");
  await ended;
}

/** Who servers run as: not root, which some of them refuse to be. With a shell, where one of Debian's accounts for servers has one. */
function accountOf(): { readonly name: string; readonly uid: number; readonly gid: number; readonly hasShell: boolean } {
  const { username, uid, gid, shell } = os.userInfo();
  if (uid !== 0) return { name: username, uid, gid, hasShell: !!shell };
  const line = /^postgres:[^:]*:(\d+):(\d+):.*:(\/.*)$/m.exec(readFileSync("/etc/passwd", "utf8"));
  if (!line) return { name: "nobody", uid: 65_534, gid: 65_534, hasShell: false };
  return { name: "postgres", uid: Number(line[1]), gid: Number(line[2]), hasShell: !/(?:nologin|false)$/.test(line[3] ?? "") };
}

function asService(): readonly string[] {
  if (process.getuid?.() !== 0) return [];
  const { uid, gid } = accountOf();
  return ["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--clear-groups", "--"];
}

/** Debian keeps the programs of each version in a directory of its own. */
function postgresDirectories(): string[] {
  const parent = "/usr/lib/postgresql";
  return existsSync(parent) ? readdirSync(parent).map((version) => path.join(parent, version, "bin")) : [];
}

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });
}
