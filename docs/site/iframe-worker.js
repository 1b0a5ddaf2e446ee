// Browsers start no worker for a page that was opened from a disk. There a hidden frame is the worker, so
// that search works as it does from a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script>self.postMessage = data => frameElement.said(data)<\/script>
        <script src="${url}"><\/script>`;
      frame.said = data => this.dispatchEvent(new MessageEvent("message", { data }));
      this.started = new Promise(done => { frame.onload = () => done(frame.contentWindow); });
      document.body.append(frame);
    }

    postMessage(data) {
      this.started.then(worker => worker.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
