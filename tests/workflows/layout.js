// Put the loaded nodes into columns and titled groups, add the note, and return the workflow as JSON text.
({ note, groups }) => {
  const GAP = 60, ROOM = 30, HEAD = 50, TITLE = 30, TOP = 200
  const WIDTH = {
    LatentSyncLipSync: 320, LatentSyncVideo: 380, LatentSyncScore: 420, LatentSyncFindFaces: 380, GetVideoComponents: 240,
    CreateVideo: 240, VAEDecode: 240, LatentSyncEncodeAudio: 300,
  }
  // these grow when they run: a line of progress, previews, our panels
  const GROWN = {
    LatentSyncLipSync: 700, LatentSyncVideo: 1120, LatentSyncScore: 650, LatentSyncFindFaces: 600,
    LatentSyncSampler: 480, KSampler: 560, LatentSyncEncodeAudio: 130, LatentSyncCondition: 220, LatentSyncComposite: 200,
  }
  // a size that does not depend on the file that is shown
  const FIXED = {
    LoadImage: [300, 400], LoadVideo: [300, 400], LoadAudio: [300, 160], PreviewImage: [300, 320], SaveVideo: [340, 440],
  }

  function place(id, x, y) {
    const node = app.graph.getNodeById(Number(id))
    const [width, height] = node.computeSize()
    node.setSize(FIXED[node.type] ?? [Math.max(width, WIDTH[node.type] ?? 280), height])
    node.pos = [x, y]
    for (const widget of node.widgets ?? []) {
      if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
    return [node.size[0], Math.max(node.size[1], GROWN[node.type] ?? 0)]
  }

  let x = 0, bottom = 0
  const frames = groups.map(([title, columns]) => {
    const left = x
    x += ROOM
    for (const column of columns) {
      let y = TOP + HEAD + TITLE, widest = 0
      for (const id of column) {
        if (typeof id === 'number') { y += id; continue }  // empty room, so that wires pass above
        const [width, height] = place(id, x, y)
        widest = Math.max(widest, width)
        y += height + TITLE + ROOM
      }
      bottom = Math.max(bottom, y - TITLE)
      x += widest + GAP
    }
    x += ROOM - GAP
    const frame = [title, left, x - left]
    x += GAP
    return frame
  })

  for (const [title, left, width] of frames) {
    const group = new LiteGraph.LGraphGroup(title)
    group.pos = [left, TOP]
    group.size = [width, bottom - TOP]
    app.graph.add(group)
  }

  const text = LiteGraph.createNode('MarkdownNote')
  app.graph.add(text)
  text.title = 'Read me'
  text.pos = [0, TITLE]
  text.setSize([Math.min(x - GAP, 900), TOP - TITLE - ROOM])
  text.widgets[0].value = note

  const saved = app.graph.serialize()
  // as it is first seen in a window of usual size
  const scale = Math.min(1, 1300 / (x - GAP), 740 / bottom)
  saved.extra = { ds: { scale, offset: [80 / scale, 60 / scale] } }
  return JSON.stringify(saved)
}
