/** Log: structured, through the logger one was given; never secrets, user code or guest output. */

/** In order of weight. */
export const LOG_LEVELS: readonly LogLevel[] = ["debug", "info", "warning", "error", "silent"];
/** How much is written. */
export type LogLevel = "debug" | "info" | "warning" | "error" | "silent";

/** Values that say what an entry is about. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** Where entries go. Implementations must not throw. */
export interface Logger {
  /** What helps to find a mistake of ours. */
  debug(message: string, fields?: LogFields): void;
  /** What was done. */
  info(message: string, fields?: LogFields): void;
  /** What is worse than it could be. */
  warning(message: string, fields?: LogFields): void;
  /** What failed without anybody being told otherwise. */
  error(message: string, fields?: LogFields): void;
}

/** A logger that writes `level message key=value …` lines of at least `level` through `write`. */
export function lineLogger(level: LogLevel, write: (line: string) => void): Logger {
  const threshold = LOG_LEVELS.indexOf(level);
  const at = (own: LogLevel) => (message: string, fields: LogFields = {}) => {
    if (LOG_LEVELS.indexOf(own) < threshold) return;
    const tail = Object.entries(fields).filter(([, value]) => value !== undefined).map(([key, value]) => ` ${key}=${quoted(value)}`);
    write(`sbx ${own}: ${message}${tail.join("")}`);
  };
  return { debug: at("debug"), info: at("info"), warning: at("warning"), error: at("error") };
}

/** A logger that drops everything. */
export function silentLogger(): Logger {
  return lineLogger("silent", () => {});
}

function quoted(value: unknown): string {
  const text = String(value);
  return /^[\w.:/@+-]+$/.test(text) ? text : JSON.stringify(text);
}
