// Requests to the kernel: one is under way at a time; of those that one gesture makes only the last has to be sent.

/** @import { Message, Model } from "../traits.js" */

const REST = 400; // milliseconds until the user is taken to rest

export class Requests {
  /** @type {Message[]} */
  queue = [];
  isBusy = false;
  hasMore = false; // resamples of this version
  version = 1; // of the ranks
  resampled = 0; // the version whose resamples were asked for
  gestures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  timer = undefined;

  /**
   * @param {Pick<Model, "send">} model
   * @param {() => boolean} resamples Whether ranks are resampled at all.
   * @param {() => boolean} isDragging
   */
  constructor(model, resamples, isDragging) {
    this.model = model;
    this.resamples = resamples;
    this.isDragging = isDragging;
  }

  get isIdle() {
    return !this.isBusy && !this.queue.length;
  }

  /** The number of a new gesture. */
  gesture() {
    return ++this.gestures;
  }

  /**
   * @param {string} call
   * @param {object} args
   * @param {string | null} gesture Which gesture it is part of.
   */
  ask(call, args = {}, gesture = null) {
    if (gesture !== null && this.queue.at(-1)?.gesture === gesture) this.queue.pop();
    this.queue.push({ call, args, gesture });
    this.next();
  }

  next() {
    if (this.isBusy) return;
    const request = this.queue.shift();
    if (!request) return this.rest();
    this.isBusy = true;
    this.model.send({ ...request, id: this.version });
  }

  /** When the user rests, asks for ranks from resampled scores, in parts: the next request does not wait for all. */
  rest() {
    if (!this.resamples()) return;
    this.stop();
    if ((!this.hasMore && this.resampled >= this.version) || this.isDragging()) return;
    this.timer = setTimeout(() => {
      this.resampled = this.version;
      this.ask("resample");
    }, this.hasMore ? 0 : REST);
  }

  /** The ranks have changed. */
  changed() {
    this.version++;
    this.hasMore = false;
    this.rest();
  }

  /** @type {(more: boolean) => void} */
  answered(more) {
    this.isBusy = false;
    this.hasMore = more;
    this.next();
  }

  stop() {
    clearTimeout(this.timer);
  }
}
