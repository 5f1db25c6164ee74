/** Progress: how long work on the images is told to whoever shows it. */

/** A step of a task; tasks may run side by side. */
export interface BuildProgress {
  /** What is being done: `kernel`, `qemu`, `image python` … Steps of one task share it. */
  readonly task: string;
  /** What the task does at the moment. */
  readonly message?: string;
  /** 0-100, where it is known. */
  readonly percent?: number;
  /** Set once, by the last step of the task. */
  readonly isDone?: boolean;
}

/** Called with each step; it must not throw. */
export type OnBuildProgress = (progress: BuildProgress) => void;
