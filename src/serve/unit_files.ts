/** Unit files: what makes the user's own service manager start the server: a systemd user unit, or a launchd agent. */
import os from "node:os";
import path from "node:path";

/** Name of the systemd unit. */
export const SYSTEMD_UNIT = "exec-sandbox.service";
/** Label of the launchd agent. */
export const LAUNCHD_LABEL = "dev.exec-sandbox.serve";

/** The service managers that we know. */
export type ServiceManager = "systemd" | "launchd";

/** A file that tells a service manager of the server. */
export interface UnitFile {
  readonly manager: ServiceManager;
  readonly path: string;
  readonly text: string;
}

/** What the server is started with. */
export interface UnitRequest {
  readonly manager: ServiceManager;
  /** Program and arguments, the program by its absolute path. */
  readonly command: readonly string[];
  /** Variables that decide what it serves. */
  readonly env: Readonly<Record<string, string>>;
  /** Whose files decide where the unit goes: `HOME`, `XDG_CONFIG_HOME`. */
  readonly userEnv: Readonly<Record<string, string | undefined>>;
}

/** The unit for this user. */
export function unitFile(request: UnitRequest): UnitFile {
  const { manager } = request;
  return { manager, path: unitPath(manager, request.userEnv), text: manager === "systemd" ? systemdText(request) : launchdText(request) };
}

/** Where the unit of this user lies. */
export function unitPath(manager: ServiceManager, env: Readonly<Record<string, string | undefined>>): string {
  const home = env["HOME"] || os.homedir();
  if (manager === "launchd") return path.join(home, "Library", "LaunchAgents", `${LAUNCHD_LABEL}.plist`);
  const config = env["XDG_CONFIG_HOME"];
  // The XDG specification tells programs to ignore a relative path here.
  return path.join(config && path.isAbsolute(config) ? config : path.join(home, ".config"), "systemd", "user", SYSTEMD_UNIT);
}

function systemdText({ command, env }: UnitRequest): string {
  const variables = Object.entries(env).map(([name, value]) => `Environment=${systemdWord(`${name}=${value}`)}\n`).join("");
  return `[Unit]
Description=Warm virtual machines for sbx
Documentation=man:systemd.service(5)

[Service]
Type=exec
ExecStart=${command.map(systemdWord).join(" ")}
${variables}Restart=on-failure
RestartSec=5
TimeoutStopSec=15
NoNewPrivileges=yes
# QEMU ends with the server; nothing else of it is to be left.
KillMode=control-group

[Install]
WantedBy=default.target
`;
}

/** systemd's own quoting: specifiers (`%`), variables (`$`) and escapes mean something within quotes too. */
function systemdWord(word: string): string {
  return `"${word.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("%", "%%").replaceAll("$", "$$$$").replaceAll("\n", "\\n")}"`;
}

function launchdText({ command, env }: UnitRequest): string {
  const words = command.map((word) => `    <string>${xml(word)}</string>\n`).join("");
  const variables = Object.entries(env).map(([name, value]) => `    <key>${xml(name)}</key>\n    <string>${xml(value)}</string>\n`).join(
    "",
  );
  return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>${LAUNCHD_LABEL}</string>
  <key>ProgramArguments</key>
  <array>
${words}  </array>
  <key>EnvironmentVariables</key>
  <dict>
${variables}  </dict>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
</dict>
</plist>
`;
}

function xml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
