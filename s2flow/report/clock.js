// One clock for all clips, so that those side by side show the same frame. A screen is
// { clip, slot, video }: a slot of the page, while it is in view, with its own <video>; out of view the
// video is taken away and its decoder with it, and the poster frame stays.
const clock = { playing: false, speed: 1, loop: true, at: 0, since: 0, screens: new Map() };

const frameOf = clip => 1 / (clip.fps || 8); // seconds
const live = () => [...clock.screens.values()];
const known = screen => (screen.video.duration > 0 ? screen.video.duration : (screen.clip.frames || 0) * frameOf(screen.clip));
const longest = () => Math.max(0, ...live().map(known)) || 1;
const shortestFrame = () => Math.min(...live().map(screen => frameOf(screen.clip)), 1 / 8);

// Seconds into the clips. Where they differ in length the longest decides; shorter ones hold their last frame.
function now() {
  const gone = clock.playing ? (performance.now() - clock.since) / 1000 * clock.speed : 0;
  const end = longest();
  return clock.loop ? (clock.at + gone) % end : Math.min(clock.at + gone, end);
}

function setClock(changes, at = now()) {
  Object.assign(clock, changes, { at, since: performance.now() });
  live().forEach(screen => follow(screen, true));
  showClock();
}

function togglePlay() {
  const over = !clock.loop && now() >= longest() - shortestFrame() / 2;
  if (clock.playing) setClock({ playing: false }, wholeFrame(now()));
  else setClock({ playing: true }, over ? 0 : now());
}

const wholeFrame = t => Math.floor(t / shortestFrame() + 1e-3) * shortestFrame();

function step(frames) {
  const one = shortestFrame(), count = Math.max(1, Math.round(longest() / one));
  const index = Math.floor(now() / one + 1e-3) + frames;
  setClock({ playing: false }, (clock.loop ? (index + count) % count : clamp(index, 0, count - 1)) * one);
}

// Bring one video to the clock: by a seek if it must or is far off, else by a little more or less speed.
function follow(screen, seek = false) {
  const { video, clip } = screen, end = video.duration, frame = frameOf(clip);
  if (!(end > 0)) return; // its header is not read yet
  const wanted = Math.min(now(), end - frame / 2);
  if (!clock.playing) {
    video.pause();
    const middle = Math.min((Math.floor(wanted / frame + 1e-3) + .5) * frame, end - frame / 4);
    if (Math.abs(video.currentTime - middle) > frame / 8) video.currentTime = middle;
    return;
  }
  video.loop = clock.loop && end > longest() - frame / 2;
  let late = wanted - video.currentTime;
  if (video.loop) late -= end * Math.round(late / end);
  if (seek || Math.abs(late) > .3 * Math.max(1, clock.speed)) {
    if (!video.seeking) video.currentTime = wanted;
    video.playbackRate = clock.speed;
  } else {
    video.playbackRate = clock.speed * clamp(1 + 2 * late / Math.max(1, clock.speed), .7, 1.5);
  }
  if (video.paused && wanted < end - frame * .6) video.play().catch(() => {}); // stopped by the browser: tried again
}

function tick() {
  if (!clock.playing) return;
  if (!clock.loop && now() >= longest()) setClock({ playing: false }, longest() - shortestFrame());
  else live().forEach(screen => follow(screen));
}

// A slot with its poster; the video comes when `mount` is called.
function slotFor(clip, label) {
  const slot = h("div", { className: "screen", role: "img", "aria-label": label });
  slot.clip = clip;
  slot.style.aspectRatio = `${clip.width} / ${clip.height}`;
  if (clip.width < 320) slot.classList.add("small");
  if (clip.poster) slot.append(h("img", { src: clip.poster, alt: "", loading: "lazy", draggable: false }));
  return slot;
}

function mount(slot) {
  if (clock.screens.has(slot)) return;
  const video = h("video", { muted: true, playsInline: true, preload: "auto", tabIndex: -1, disablePictureInPicture: true });
  const screen = { clip: slot.clip, slot, video, shown: null };
  video.onloadedmetadata = () => { follow(screen, true); showClock(); };
  video.onloadeddata = () => { slot.classList.add("ready"); slot.classList.remove("broken"); };
  video.onerror = () => {
    slot.classList.add("broken");
    slot.dispatchEvent(new CustomEvent("broken"));
  };
  if (video.requestVideoFrameCallback) {
    const painted = (_, { mediaTime }) => {
      screen.shown = mediaTime;
      video.requestVideoFrameCallback(painted);
    };
    video.requestVideoFrameCallback(painted);
  }
  clock.screens.set(slot, screen);
  slot.append(video);
  video.src = slot.clip.src;
}

function unmount(slot) {
  const screen = clock.screens.get(slot);
  if (!screen) return;
  clock.screens.delete(slot);
  screen.video.onerror = null;
  screen.video.pause();
  screen.video.removeAttribute("src");
  screen.video.load(); // gives the decoder back
  screen.video.remove();
  slot.classList.remove("ready");
}

// Whatever is watched has a video while it is in view, and only then.
const inView = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) => {
  if (isIntersecting && target.isConnected) mount(target);
  else unmount(target);
}), { rootMargin: "120px" });

function watch(slot) { inView.observe(slot); }
function unwatch(slot) { inView.unobserve(slot); unmount(slot); }

// -- the bar below the clips --------------------------------------------------------------------

function showClock() {
  $("play").textContent = clock.playing ? "Pause" : "Play";
  $("loop").checked = clock.loop;
  $("speed").value = clock.speed;
  showTime();
}

let scrubbing = false;
function showTime() {
  const one = shortestFrame(), end = longest(), t = now();
  const count = Math.max(1, Math.round(end / one));
  $("scrub").max = Math.max(end - one, one);
  if (!scrubbing) $("scrub").value = t;
  $("scrub").setAttribute("aria-valuetext", `${t.toFixed(2)} s`);
  const frame = Math.min(Math.floor(t / one + 1e-3) + 1, count);
  $("time").textContent = live().length ? `${t.toFixed(2)} s · frame ${frame}/${count}` : "no clip in view";
}

$("play").onclick = togglePlay;
$("back").onclick = () => step(-1);
$("forth").onclick = () => step(1);
$("scrub").oninput = () => { scrubbing = true; setClock({ playing: false }, wholeFrame(Number($("scrub").value))); };
$("scrub").onchange = () => { scrubbing = false; };
$("speed").onchange = () => setClock({ speed: Number($("speed").value) });
$("loop").onchange = () => setClock({ loop: $("loop").checked });
$("smooth").onchange = () => document.body.classList.toggle("smooth", $("smooth").checked);
setInterval(tick, 200);
(function paint() { if (clock.playing) showTime(); requestAnimationFrame(paint); })();
